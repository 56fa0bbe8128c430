"""The class that a user means: by number, by WordNet id, or by a name that need not be exact."""

from collections.abc import Sequence

from finetune.utils import UsageError, did_you_mean


def find_class(target: str | int, classes: Sequence[str], ids: Sequence[str] = ()) -> int:
    """The number of the class `target`: a number, a WordNet id, a name in any case, or a word of one name only.

    Raises UsageError with the nearest names, or with all names that have the word.
    """
    if isinstance(target, int):
        if not 0 <= target < len(classes):
            raise UsageError(f"there is no class number {target}.", hint=f"Classes are 0 to {len(classes) - 1}.")
        return target
    words = _words(target)
    for names in (ids, classes):
        if target and target in names:
            return names.index(target)
        same = [number for number, name in enumerate(names) if words and _words(name) == words]
        if same:
            return same[0]
    matches = [number for number, name in enumerate(classes) if words and f" {words} " in f" {_words(name)} "]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(classes[number] for number in matches[:8])
        more = f" and {len(matches) - 8} more" if len(matches) > 8 else ""
        raise UsageError(f"{target!r} may be any of {len(matches)} classes: {listed}{more}.", hint="Give one of them.")
    near = did_you_mean(target, classes)
    hint = f"Known: {', '.join(classes)}" if len(classes) <= 20 else "`finetune predict` shows the names of classes."
    raise UsageError(f"the model has no class {target!r}.{near}", hint=hint)


def _words(name: str) -> str:
    """The letters and digits of `name`, in lower case, with single spaces between: dashes make no difference."""
    letters = (character if character.isalnum() else " " for character in name.casefold())
    return " ".join("".join(letters).split())
