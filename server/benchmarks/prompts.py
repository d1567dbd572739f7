"""Prompts of a wanted length, the same for every server that is measured.

Each of the words is one token in the vocabularies of the models served here when a space stands before it, so words
count as tokens, give or take the template's own. What a server counted itself is in the report.
"""

import random

TASK = (
    "Ignore the words above. Count from one to one thousand in English words, one number on each line, "
    "and never stop early."
)
"""Makes models go on to `max_tokens` by themselves, since not every server takes `ignore_eos`."""
TASK_TOKENS = 30

_COMMON = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea kid body "
    "information back parent face others level office door health person art war history party result change morning "
    "reason research girl guy moment air teacher force education"
)
WORDS = _COMMON.split()


def make_prompt(index: int, *, tokens: int, shared_prefix: int = 0, seed: int = 0) -> str:
    """The prompt of request `index`: about `tokens` tokens, the first `shared_prefix` of them the same for all."""
    shared = random.Random(f"{seed} shared").choices(WORDS, k=shared_prefix)
    own = random.Random(f"{seed} {index}").choices(WORDS, k=max(0, tokens - shared_prefix - TASK_TOKENS))
    return " ".join([*shared, *own, TASK])
