"""Which request headers reveal a proxy between a client and this server.

Three questions, in this order. Is it a header that clients send themselves? Then it reveals nothing. Does its name
contain a word for a hop, or belong to a vendor of proxies? Does its value describe a connection: an address, a host, a
URL, a scheme? The last question catches headers that are not known yet: describing a connection is their purpose.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from ipaddress import ip_address

_OF_CLIENTS = """
a-im accept accept-charset accept-datetime accept-encoding accept-language accept-patch access-control-request-headers
access-control-request-method access-control-request-private-network alt-used api-key authorization b3 baggage
cache-control connection content-disposition content-encoding content-language content-length content-md5 content-type
cookie correlation-id date device-memory dnt downlink dpr ect expect from host http-referer http2-settings
idempotency-key if-match if-modified-since if-none-match if-range if-unmodified-since keep-alive last-event-id
mime-version origin pragma prefer priority purpose range referer request-id rtt save-data sentry-trace service-worker
te traceparent tracestate trailer transfer-encoding uber-trace-id upgrade upgrade-insecure-requests user-agent
viewport-width want-digest width x-api-key x-client-request-id x-correlation-id x-csrf-token x-csrftoken
x-goog-api-client x-goog-api-key x-prometheus-scrape-timeout-seconds x-request-id x-requested-with x-title
x-xsrf-token
"""
OF_CLIENTS = frozenset(_OF_CLIENTS.split())
# Libraries put their names, versions, users and chats there. No script can set "sec-": only the browser itself can.
FAMILIES_OF_CLIENTS = (
    *("sec-", "x-stainless-", "x-openwebui-", "openai-", "x-openai-", "anthropic-", "x-b3-", "x-gradio-", "x-codex-"),
    *("x-opencode-", "x-litellm-", "x-librechat-", "x-datadog-"),
)
_WORDS = """
addr address asn authenticated backend balancer bastion broker cdn cert city cloudfront cluster colo connecting
country dest destination dn domain downstream edge for forwarded front fronted frontend gateway geo hop hops host
hostname http https incoming ingress ip ips ipv4 ipv6 lb loadbalancer loop mesh nat offloaded orig original path peer
pop port proto protocol proxied proxies proxy ray real region relay remote rewrite rewritten route router scheme
served server sni ssl subject terminated tls true tunnel upstream uri url verify vhost via visitor waf webauth
claim consumer hopcount iv oidc principal secure siteminder sm
"""
WORDS = frozenset(_WORDS.split())
STEMS = ("forward", "prox", "balanc", "tunnel", "gateway", "ingress", "upstream", "remote")
VENDORS = re.compile(
    r"(x-)?(authelia|sigsci|zrok|akamai|ali|amz|amzn|appengine|appgw|arr|auth-request|authentik|aws|azure|bunny|cache|cdn|cf|cloud|cloudfront|"
    r"cloudflare|connect-time|early-data|eagleeye|ec|edge|envoy|fastly|fb|fly|front|goog|google|haproxy|heroku|incap|istio|"
    r"iisnode|kong|l5d|lb|linkerd|max-forwards|nf|nginx|ngrok|pantheon|pomerium|queue-start|railway|render|replit|"
    r"request-start|rndr|remote|squid|sucuri|surrogate|tailscale|teleport|tencent|timer|total-route-time|traefik|ts|"
    r"varnish|vercel|wap|wl|wsgi|zscaler)(-|$)"
)
_PART = re.compile(r"[^a-z0-9]+")
_HOST = re.compile(r"(^|[\s,;=\"'@/])([\w-]+\.)+[^\W\d_]{2,}\.?(?=[\s,;:/\"']|$)")
_NOT_AN_IP = frozenset({"clip", "gzip", "ship", "skip", "strip", "tip", "trip", "zip"})
_VERSION_OR_FILE = re.compile(r"\.(js|ts|py|go|rs|json|md|txt|sh|rb|css|html)$")
_SCHEME = re.compile(r"(^|[\s,;=\"':{])(https?|wss?|h2c?|h3|ssl|tlsv?[0-9.]*)(?=[\s,;:\"'}]|$)")
_LIKE_AN_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}(:[0-9]+)?|\[?(?=[^:]*:[^:]*:)[0-9a-f:.]+(%\w+)?(\](:[0-9]+)?)?")
_IPV4 = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.])")
MOST_LIKE_ADDRESSES = 30
_SPLIT = re.compile(r"[\s,;=\"'()<>{}|]+")


def hop_in(headers: Iterable[tuple[str, str]]) -> str:
    """The name of the first header that reveals a hop, "" if none does. Names are lower-case."""
    return next((name for name, value in headers if _is_of_hop(name, value.lower())), "")


def _is_of_hop(name: str, value: str) -> bool:
    if name in OF_CLIENTS or name.startswith("sec-ch-"):
        return False
    if name.startswith(FAMILIES_OF_CLIENTS):  # they also hold mail addresses and versions: hosts are not looked for
        return any(stem in name for stem in STEMS) or _has_address(value)
    parts = set(_PART.split(name))
    if parts & WORDS or any(stem in name for stem in STEMS) or VENDORS.match(name):
        return True
    return any(part.endswith("ip") for part in parts - _NOT_AN_IP) or _tells_of_connection(value)


def _tells_of_connection(value: str) -> bool:
    if "://" in value or value.startswith("/") or _SCHEME.search(value) or _has_address(value):
        return True
    found = _HOST.search(value)
    return found is not None and not _VERSION_OR_FILE.search(found.group())


def _has_address(value: str) -> bool:
    """Whether an IP address is in it, with or without port or brackets. More than `MOST_LIKE_ADDRESSES` words that look
    like addresses count as one: nothing that a client sends itself has dozens of them."""
    if any(_is_address(found) for found in _IPV4.findall(value)):
        return True
    words = [word for word in _SPLIT.split(value) if _LIKE_AN_ADDRESS.fullmatch(word)]
    return len(words) > MOST_LIKE_ADDRESSES or any(_is_address(word) for word in words)


def _is_address(word: str) -> bool:
    for text in (word, word.strip("[]"), word.rpartition(":")[0].strip("[]")):
        with contextlib.suppress(ValueError):
            ip_address(text)
            return True
    return False
