"""Deterministic automata of languages."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Automaton:
    """A deterministic automaton that starts in state 0: for each state, the characters to each next state."""

    moves: list[dict[int, list[tuple[int, int]]]]
    accepting: set[int]

    @property
    def is_empty(self) -> bool:
        """Whether no text is accepted; of one all of whose states can be reached."""
        return not self.accepting

    def trimmed(self) -> "Automaton":
        """Without moves to states from which nothing is accepted."""
        alive, grew = set(self.accepting), True
        while grew:
            more = {state for state, found in enumerate(self.moves) if state not in alive and alive & found.keys()}
            alive |= more
            grew = bool(more)
        return Automaton(
            [{to: chars for to, chars in found.items() if to in alive} for found in self.moves], self.accepting
        )

    @property
    def is_endless(self) -> bool:
        """Whether there are endlessly many texts from every state on; of one that is trimmed."""
        ending: set[int] = set()
        grew = True
        while grew:
            more = {state for state, found in enumerate(self.moves) if state not in ending and found.keys() <= ending}
            ending |= more
            grew = bool(more)
        reached, stack = {0}, [0]
        while stack:
            for to in self.moves[stack.pop()]:
                if to not in reached:
                    reached.add(to)
                    stack.append(to)
        return not ending & reached
