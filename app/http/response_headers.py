"""The security headers of responses: where scripts, styles and pictures may come from, and who may embed the page."""

from __future__ import annotations

from collections.abc import Mapping

# For everything that is not one of our pages: nothing loads, nothing is sent, no site frames it.
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
    "X-DNS-Prefetch-Control": "off",  # a link in an answer is not looked up before it is followed
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in UNUSED_FEATURES),
}


def page_policy(script_hash: str) -> str:
    """The chat page's policy: the page's own files, the one inline script with this SHA-256 hash (base64), and nothing
    else. A string is never run as a script."""
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{script_hash}'; style-src 'self'; img-src 'self'; "
        "font-src 'self'; connect-src 'self'; object-src 'none'; frame-src 'none'; worker-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def headers_with(policy: str) -> dict[str, str]:
    """All security headers of one response."""
    return {**COMMON_HEADERS, "Content-Security-Policy": policy}
