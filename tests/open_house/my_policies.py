"""Where the gradient enters: two steps, as far apart as the user likes."""

from vader import UserError, View


def pair(walk, generator, *, apart: int = 1):
    """Gradient in the last step, and in the one that is `apart` steps before it."""
    end = len(walk) - 1
    if not 0 < apart <= end:
        raise UserError(f"policy 'pair' has steps {apart} apart, of {len(walk)}: choose 1 to {end}")
    at = walk.frozen(end - apart)
    at = walk.step(at)
    yield View(walk.to(len(walk), at, active=[end]).latents)
