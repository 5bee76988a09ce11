"""How often a watched loop is looked at, in one place for the guards and for what the rules say of it."""

EARLY, CLOSE = 16, 4
"""From this step on what takes turns is looked at in every so many steps,"""
SETTLED, APART = 64, 8
"""from this one on more rarely,"""
LATER, WIDE = 128, 32
"""then again,"""
LONG, RARE = 256, 64
"""and from this one on as rarely as this."""
LIGHT = 8
"""Until SETTLED the outputs are looked at in every so many steps, which takes a few passes over them."""
WIDELY = f"from {LATER} on every {WIDE}nd, from {LONG} on every {RARE}th"
TURNS = f"every step, from step {EARLY} on every {CLOSE}th, from {SETTLED} on every {APART}th, {WIDELY}"
LOOKS = f"first steps, every {LIGHT}th to step {SETTLED}, then at powers of two, every K"


def pace(step: int) -> int:
    """Of how many steps what takes turns is looked at in one, from this step on; each is a multiple of those before it."""
    if step < SETTLED:
        return 1 if step < EARLY else CLOSE
    return APART if step < LATER else WIDE if step < LONG else RARE


def asked(step: int) -> bool:
    """Whether what takes turns is looked at in a step, if nothing else is."""
    return step % pace(step) == 0


def next_asked(step: int) -> int:
    """The first step from this one on in which what takes turns is looked at."""
    apart = pace(step)
    return -(-step // apart) * apart


def turn(step: int) -> int:
    """How many steps there were before this one in which what takes turns was looked at."""
    if step < EARLY:
        return step
    middle, late, last = min(step, SETTLED), min(max(step, SETTLED), LATER), min(max(step, LATER), LONG)
    many = EARLY + (middle - EARLY) // CLOSE + (late - SETTLED) // APART + (last - LATER) // WIDE
    return many + max(0, step - LONG) // RARE
