"""`firstlight train mid`, `sft` and `rl`: the stages after the base run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from firstlight.cli.train import chosen_settings
from firstlight.recipes.settings import MidSettings, RlSettings, SftSettings


def mid(
    *,
    config: Path | None = None,
    name: str | None = None,
    settings: Annotated[MidSettings | None, Parameter(name="*")] = None,
) -> None:
    """Mid-train: a base model learns the form of conversations, among text of the kind it knows.

    Loss is on all ids. The data is a mixture by weight of conversations and of the base run's text.

    For example:

        firstlight train mid --init BASE
        firstlight train mid --init BASE --data smol-smoltalk:3,builtin-chat:1,text:1 --minutes 30 --run mid
        firstlight train mid --run mid --resume

    Parameters
    ----------
    config
        A TOML file whose keys are the names below; flags on the command line win.
    name
        The same as --run, for torchrun: it reads --run as short for an option of its own (--run-path).
    """
    from firstlight.recipes import mid as recipe

    chosen, given = chosen_settings(settings or MidSettings(), config=config, name=name)
    recipe.train_mid(chosen, given=given)


def sft(
    *,
    config: Path | None = None,
    name: str | None = None,
    settings: Annotated[SftSettings | None, Parameter(name="*")] = None,
) -> None:
    """Fine-tune on conversations: loss on what the assistant writes, so that the model learns to answer.

    For example:

        firstlight train sft --init MID
        firstlight train sft --init MID --data my_chats.jsonl:2,builtin-chat --epochs 2 --run chat
        firstlight train sft --run chat --resume

    Parameters
    ----------
    config
        A TOML file whose keys are the names below; flags on the command line win.
    name
        The same as --run, for torchrun: it reads --run as short for an option of its own (--run-path).
    """
    from firstlight.recipes import sft as recipe

    chosen, given = chosen_settings(settings or SftSettings(), config=config, name=name)
    recipe.train_sft(chosen, given=given)


def rl(
    *,
    config: Path | None = None,
    name: str | None = None,
    settings: Annotated[RlSettings | None, Parameter(name="*")] = None,
) -> None:
    """Reinforcement learning: the model answers, an environment rewards, and what was better than its group gets likelier.

    For example:

        firstlight train rl --init CHAT --environment spelling --minutes 10
        firstlight train rl --init CHAT --environment gsm8k --num-iterations 500 --prompts-per-step 32
        firstlight train rl --run NAME --resume

    Parameters
    ----------
    config
        A TOML file whose keys are the names below; flags on the command line win.
    name
        The same as --run, for torchrun: it reads --run as short for an option of its own (--run-path).
    """
    from firstlight.recipes import rl as recipe

    chosen, given = chosen_settings(settings or RlSettings(), config=config, name=name)
    recipe.train_rl(chosen, given=given)
