"""Turns a model's Markdown answer into a tree of allowed nodes, from which the page's script builds elements.

No HTML is involved. `parser` turns text into tokens (markdown-it-py, HTML off), `tree` turns tokens into `nodes`, and
app/page/assets/answer.js turns nodes into elements by its own list. Whatever an answer says, it can only become one of
those nodes, or text.
"""
