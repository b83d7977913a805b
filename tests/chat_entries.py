"""Functions that were never written, with documentation, for the tests of builtin-chat."""

from __future__ import annotations

from firstlight.data.chat.builtin_facts import Facts
from firstlight.data.chat.builtin_reading import Entry

VERBS = ("open", "close", "mend", "paint", "count", "weigh", "carry", "clean", "sort", "name", "find", "lift")
THINGS = ("door", "window", "table", "lamp", "chair", "clock", "fence", "gate", "roof", "shelf", "stove", "ladder")


def made_up_entries() -> list[Entry]:
    """144 functions and 12 classes, each with its own sentence; some return, take and raise something."""
    found = []
    for i, verb in enumerate(VERBS):
        for j, thing in enumerate(THINGS):
            facts = Facts(
                does=f"{verb.capitalize()} the {thing} of the house.",
                params=(("house", f"The house whose {thing} it is."), ("speed", "How fast it is done."))[: (i + j) % 3],
                returns=f"The {thing} after the work." if j % 2 else "",
                raises=(("ValueError", f"If there is no {thing}."),) if i % 3 == 0 else (),
            )
            found.append(Entry(f"{verb}_{thing}", "housework", False, facts))
        found.append(
            Entry(verb.capitalize() + "Work", "housework", True, Facts(does=f"Work that is to {verb} a thing."))
        )
    return found


WORDS = sorted({a + b for a in ("un", "re", "over", "under", "out") for b in (*VERBS, *THINGS)} | {*VERBS, *THINGS})
