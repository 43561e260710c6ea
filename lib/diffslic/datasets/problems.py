"""Reading a whole dataset to name what is broken in it."""

from collections.abc import Callable, Iterable, Iterator

from diffslic.datasets.clip import Clip


def problems_of(openers: Iterable[Callable[[], Clip]], deep: bool) -> Iterator[str]:
    """Open every clip and read it, one line per problem.

    Args:
        openers: one function per clip, so that a broken clip does not hide the next.
        deep: decode every file; otherwise only the first of each kind.
    """
    for open_clip in openers:
        try:
            clip = open_clip()
        except (OSError, ValueError, LookupError) as error:
            yield str(error)
            continue
        for kind in clip.readers:
            frames = clip.frames_with(kind)
            for t in frames if deep else frames[:1]:
                try:
                    clip.readers[kind](t)
                except (OSError, ValueError) as error:
                    yield str(error)
                except LookupError:  # this frame has none, which is the loader's own business to report
                    continue
