"""What penalties need to know of a sequence: how often each token was generated, and which stand in its prompt."""

import numpy as np
import torch

from engine.device.device import to_device, upload
from engine.scheduling.sequence import Sequence


class TokenCounts:
    """Rows by slot. They are brought up to date when a sequence with a penalty samples, and hold it until then."""

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self.counts = torch.zeros(max_num_seqs, vocab_size, dtype=torch.int32, device=device)
        """int32 [slots, vocab]: how often each token was generated."""
        self.in_prompt = torch.zeros(max_num_seqs, vocab_size, dtype=torch.bool, device=device)
        """bool [slots, vocab], for repetition_penalty."""
        self._counted: dict[int, tuple[Sequence, int]] = {}
        """Slot → whose tokens, and how many of them, the rows hold. The sequence itself: ids may come again."""

    def update(self, sequences: list[Sequence]) -> None:
        """Count the tokens that these sequences have and the rows of their slots lack."""
        places: list[int] = []
        for sequence in sequences:
            slot = sequence.slot
            owner, counted = self._counted.get(slot, (None, 0))
            if owner is not sequence:
                counted = sequence.num_prompt_tokens
                # A placeholder for an image may have no logit.
                known = [token for token in sequence.token_ids[:counted] if token < self._vocab_size]
                prompt = to_device(np.array(known, dtype=np.int64), self._device)
                self.counts[slot] = 0
                self.in_prompt[slot] = False
                self.in_prompt[slot].index_fill_(0, prompt, True)
            places += [slot * self._vocab_size + token for token in sequence.token_ids[counted:]]
            self._counted[slot] = (sequence, sequence.num_tokens)
        if places:
            (index,) = upload([np.array(places, dtype=np.int64)], self._device)
            self.counts.view(-1).index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
