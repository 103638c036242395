"""Rules of ours for the Markdown parser: addresses, emphasis beside CJK text, footnotes, mathematics."""
