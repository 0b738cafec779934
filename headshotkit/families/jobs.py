"""Draw pictures by jobs: the one loop around a family's `render`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from PIL.Image import Image

from headshotkit.core.records import Headshot
from headshotkit.core.runtime import batches_of
from headshotkit.families import Family, Sampling


@dataclass(frozen=True)
class Job:
    """A picture to draw. `seed`: of its noise. `size_px`: (width, height)."""

    prompt: str
    negative: str
    seed: int
    size_px: tuple[int, int]

    @classmethod
    def of(cls, shot: Headshot) -> Job:
        """Return the job that drew a headshot."""
        return cls(shot.prompt, shot.negative, shot.seed, tuple(shot.size_px))


def draw(
    family: Family, jobs: Iterable[Job], sampling: Sampling, batch: int = 1, on_step: Callable[[], None] | None = None
) -> Iterator[tuple[Job, Image]]:
    """Draw jobs in batches of one size, and yield each job with its picture as soon as its batch is drawn.

    The batches depend only on the jobs' sizes and order. That matters because another batch rounds differently. The
    jobs of a size stay in order.

    Args:
        family: the loaded base, or a `controls.Guided` one.
        sampling: settings of all jobs; each job's own size replaces its size.
        batch: most pictures drawn at once.
        on_step: is called after every sampler step; an exception from it ends the drawing.
    """
    for group in batches_of(jobs, batch, kind=lambda job: job.size_px):
        prompts, negatives, seeds = ([getattr(job, name) for job in group] for name in ("prompt", "negative", "seed"))
        sized = replace(sampling, size_px=group[0].size_px)
        yield from zip(group, family.render(prompts, negatives, seeds, sized, on_step), strict=True)
