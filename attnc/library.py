"""The zoo: what comes with attnc, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnc.api import Pattern


class Zoo:
    """The published patterns that come with attnc: ``zoo.longformer(window=8)``, ``zoo["name"]``.

    ``dir(zoo)``, ``list(zoo)`` and ``len(zoo)`` go over their names; ``zoo.routes`` names the
    attentions whose keys are chosen by content, ``zoo.moba(top=3)`` makes one.
    """

    def __getattr__(self, name: str) -> Callable[..., Pattern]:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as unknown:
            raise AttributeError(unknown.args[0]) from None

    def __getitem__(self, name: str) -> Callable[..., Pattern]:
        from attnc.api import faced
        from attnc.compiler import driver
        from attnc.dsl.suggest import did_you_mean

        names = driver.zoo_all()
        if name not in names:
            hint = did_you_mean(name, names) or f"there are {', '.join(names)}"
            raise KeyError(f"the zoo has no pattern {name!r}; {hint}")

        def make(**params: object) -> Pattern:
            return faced(driver.loaded_zoo(name, params))

        make.__name__ = make.__qualname__ = name
        make.__doc__ = driver.zoo_text(name)
        return make

    @property
    def routes(self) -> tuple[str, ...]:
        """The names of attentions whose keys are chosen by content."""
        from attnc.compiler import driver

        return driver.zoo_routes()

    def __iter__(self) -> Iterator[str]:
        from attnc.compiler import driver

        return iter(driver.zoo_names())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))

    def __dir__(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        return f"<attnc zoo: {', '.join(self)}>"


zoo = Zoo()
