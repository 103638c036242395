"""A model's answer, from Markdown to a tree of allowed nodes that the page's script builds elements from.

There is no HTML on the way. `parser` turns text into tokens (markdown-it-py, HTML off), `tree` turns tokens into
`nodes`, and app/page/assets/answer.js turns nodes into elements by a list of its own. Whatever an answer says, it can
only become one of those nodes, or text.
"""
