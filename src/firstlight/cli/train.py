"""`firstlight train base`: flags and a TOML file in, one run out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Parameter

from firstlight.recipes.settings import BaseSettings, RunSettings, setting_names

S = TypeVar("S", bound=RunSettings)


def given_names(arguments: list[str], settings: type[RunSettings] = BaseSettings) -> frozenset[str]:
    """Settings of a stage that a command line names, whatever their value.

    >>> sorted(given_names(["--depth", "4", "--max_seq_len=64", "--no-resume"]))
    ['depth', 'max_seq_len', 'resume']
    """
    words = {a[2:].split("=")[0].replace("-", "_") for a in arguments if a.startswith("--")}
    return frozenset({w.removeprefix("no_") for w in words} & setting_names(settings))


def base(
    *,
    config: Path | None = None,
    name: str | None = None,
    settings: Annotated[BaseSettings | None, Parameter(name="*")] = None,
) -> None:
    """Pretrain a base model on text: tokenizer, tokens, training, scores, samples, report.

    Give one horizon (--minutes, --num-iterations, --tokens, --flops or --tokens-per-param). A run lives in runs/NAME;
    start it again with --resume after any stop.

    For example:

        firstlight train base --depth 4 --minutes 10
        firstlight train base --data my_texts/ --val last --depth 6 --run mine
        firstlight train base --run mine --resume
        firstlight train base --config run.toml --num-iterations 500
        torchrun --standalone --nproc_per_node=8 -m firstlight train base --depth 20 --total-batch-size 524288

    Parameters
    ----------
    config
        A TOML file whose keys are the names below; flags on the command line win.
    name
        The same as --run, for torchrun: it reads --run as short for an option of its own (--run-path).
    """
    from firstlight.recipes import base as recipe

    chosen, given = chosen_settings(settings or BaseSettings(), config=config, name=name)
    recipe.train_base(chosen, given=given)


def chosen_settings(settings: S, *, config: Path | None, name: str | None) -> tuple[S, frozenset[str]]:
    """Settings of a command line with those of its TOML file, and the names that were given in either.

    Raises ConfigError for a file that is none, for names that are not known, and for two names of the run.
    """
    from firstlight.config import from_dict, load_toml
    from firstlight.errors import ConfigError

    kind = type(settings)
    given = given_names(sys.argv, kind)
    if config is not None:
        values = load_toml(config)
        from_file = from_dict(kind, values, where=str(config))
        flags = {name: getattr(settings, name) for name in given}
        settings = replace(from_file, **flags)
        given = given | frozenset(values)
    if name is not None:
        if "run" in given and settings.run != name:
            raise ConfigError(f"--run {settings.run} and --name {name} name two runs", hint="give one of them")
        settings, given = replace(settings, run=name), given | {"run"}
    return settings, given
