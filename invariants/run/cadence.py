"""How often a watched loop is looked at, in one place for the guards and for what the rules say of it."""

EARLY, CLOSE = 16, 4
"""From this step on what takes turns is looked at in every so many steps,"""
SETTLED, APART = 64, 8
"""from this one on more rarely,"""
LATER, WIDE = 128, 32
"""and from this one on as rarely as this."""
LIGHT = 8
"""Until SETTLED the outputs are looked at in every so many steps, which takes a few passes over them."""
TURNS = f"every step, from step {EARLY} on every {CLOSE}th, from {SETTLED} on every {APART}th, from {LATER} on every {WIDE}nd"
LOOKS = f"first steps, every {LIGHT}th to step {SETTLED}, then at powers of two, every K"


def asked(step: int) -> bool:
    """Whether what takes turns is looked at in a step, if nothing else is."""
    return step < EARLY or step % (CLOSE if step < SETTLED else APART if step < LATER else WIDE) == 0


def next_asked(step: int) -> int:
    """The first step from this one on in which what takes turns is looked at."""
    if step < EARLY:
        return step
    apart = CLOSE if step < SETTLED else APART if step < LATER else WIDE
    return -(-step // apart) * apart


def turn(step: int) -> int:
    """How many steps there were before this one in which what takes turns was looked at."""
    if step < EARLY:
        return step
    middle, late = min(step, SETTLED), min(max(step, SETTLED), LATER)
    return EARLY + (middle - EARLY) // CLOSE + (late - SETTLED) // APART + max(0, step - LATER) // WIDE
