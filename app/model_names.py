"""The names by which clients may ask for the one model that is served."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelNames:
    """`aliases` are served besides the model's own name; with `takes_any` every name is, and no name at all."""

    aliases: tuple[str, ...] = ()
    takes_any: bool = False

    def serves(self, asked: str | None, own: str) -> bool:
        """Whether a request for the model `asked` is for the one that is called `own`."""
        return self.takes_any or asked == own or asked in self.aliases
