"""Versions of a checkpoint's parts, so that a new field does not orphan the older files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from paddlescience_gradnorm.training._checkpoint_file import CheckpointError
from paddlescience_gradnorm.training._like import joined


class Schema(NamedTuple):
    """The fields of one kind of part, and the version that each part carries with them.

    To give a part one more field, append ``{name: default}`` to ``added``. That raises the
    version, and a file of an older version gets the default.

    Args:
        what: Name of the part for the errors, with its article.
        fields: Names of the fields of version 1.
        added: The fields that each later version has added, with their defaults.

    Examples:
        >>> old, new = Schema("a clock", ("hour",)), Schema("a clock", ("hour",), ({"minute": 0},))
        >>> old.written(hour=7)
        {'version': 1, 'hour': 7}
        >>> new.read(old.written(hour=7))
        {'minute': 0, 'hour': 7}
    """

    what: str
    fields: tuple[str, ...]
    added: tuple[Mapping[str, Any], ...] = ()

    @property
    def version(self) -> int:
        """The version that this package writes."""
        return 1 + len(self.added)

    def written(self, **fields: Any) -> dict[str, Any]:
        """The state of a part, for the file."""
        return {"version": self.version, **fields}

    def read(self, state: Any) -> dict[str, Any]:
        """The fields of a state that ``written`` has made, perhaps in an older package.

        Args:
            state: What the file has for the part; nobody has checked it.

        Raises:
            CheckpointError: A newer package has written it, or it has other fields.
        """
        if not isinstance(state, dict) or "version" not in state:
            raise CheckpointError(f"has no state of {self.what}")
        fields = dict(state)
        version = fields.pop("version")
        if type(version) is not int or version < 1:
            raise CheckpointError(f"has the impossible version {str(version)[:20]} of {self.what}")
        if version > self.version:
            raise CheckpointError(
                f"was written by a newer paddlescience_gradnorm: it holds version "
                f"{str(version)[:20]} of {self.what}, and this package knows versions up to "
                f"{self.version}. Update the package, or go on with the one that wrote the file"
            )
        for defaults in self.added[version - 1 :]:
            fields = {**defaults, **fields}
        known = set(self.fields).union(*self.added)
        for name in sorted(known - set(fields)):
            raise CheckpointError(f"has no {name} of {self.what}")
        for name in sorted(set(fields) - known):
            raise CheckpointError(f"has {name!r} of {self.what}, which is not known here")
        return fields


def filled(own: Any, state: Any, where: str, is_older: bool) -> Any:
    """A state in which the fields that it lacks are those of one's own state.

    Args:
        own: One's own state; its dicts say which fields there are.
        state: What a file has in its place.
        where: Where it is, for the errors.
        is_older: Whether the file says that it is older than this package.

    Raises:
        CheckpointError: It has a field that one's own state has not.

    Examples:
        >>> filled({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 7}}, "extra", is_older=False)
        {'a': 1, 'b': {'c': 7, 'd': 3}}
    """
    if not isinstance(own, dict) or not isinstance(state, dict):
        return state
    for name in sorted(set(state) - set(own)):
        why = "the file is older" if is_older else "the file is newer (update this package)"
        raise CheckpointError(
            f"has {name!r} at {where}, which is not known here: {why}, or the layer was built "
            "with other options"
        )
    return {
        name: filled(value, state[name], joined(where, name), is_older) if name in state else value
        for name, value in own.items()
    }
