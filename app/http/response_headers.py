"""What every response tells the browser: where its scripts, styles and pictures may come from, and who may embed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Nothing loads, nothing is sent, nobody frames it: for whatever is not a page of ours.
LOCKED_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
LOGIN_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; object-src 'none'; frame-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
UNUSED_FEATURES = (
    "accelerometer", "autoplay", "camera", "display-capture", "encrypted-media", "geolocation", "gyroscope",
    "hid", "magnetometer", "microphone", "midi", "payment", "serial", "usb", "xr-spatial-tracking",
)  # fmt: skip
COMMON_HEADERS: Mapping[str, str] = {
    "Referrer-Policy": "same-origin",  # "no-referrer" would make a form's own Origin "null"
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",  # a link in an answer is not looked up before somebody follows it
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in UNUSED_FEATURES),
}


def page_policy(nonce: str, style_hashes: Sequence[str] = ()) -> str:
    """The chat page's policy: an inline script or style counts only with `nonce`, a style attribute only if it is one
    of those that the page was written with, and a string is never run as a script."""
    styles = " ".join(["'self'", f"'nonce-{nonce}'", "'unsafe-hashes'", *style_hashes])
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src {styles}; img-src 'self'; font-src 'self'; "
        "connect-src 'self'; object-src 'none'; frame-src 'none'; worker-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def headers_with(policy: str) -> dict[str, str]:
    """All security headers of one response."""
    return {**COMMON_HEADERS, "Content-Security-Policy": policy}
