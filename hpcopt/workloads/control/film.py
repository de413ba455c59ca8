"""Pictures of an evaluation episode, as its environment draws them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hpcopt.errors import JobError
from hpcopt.workloads.control.here import Here
from hpcopt.workloads.control.workload import Control
from hpcopt.workloads.own.theirs import theirs

FRAME_MS = 40  # of a moving picture: GIF knows hundredths of a second
STRIP = 8  # pictures side by side


@torch.no_grad()
def film(workload: Control, model: nn.Module, episode: int) -> tuple[list[np.ndarray], float]:
    """Act in an evaluation episode and have each state drawn.

    Args:
        workload: whose environment is acted in.
        model: the agent, on the CPU.
        episode: its number among those of the evaluation.

    Returns:
        Pictures, (height, width, 3) each, uint8, of the first state and of what follows each action; and the return.

    Raises:
        JobError: there is no such episode, or the environment draws nothing.
    """
    if not 0 <= episode < workload.test_samples:
        raise JobError(f"--episode {episode}: the evaluation has episodes 0 to {workload.test_samples - 1}")
    maker, frames, total, over = workload.maker, list[np.ndarray](), 0.0, False
    environment = maker.make(render_mode="rgb_array")
    here = Here([environment], maker.layout.observations, maker.max_episode_steps)
    try:
        observed = here.reset(0, workload.evaluation_seed(episode))
        while True:
            with theirs("the environment's render()", JobError):
                drawn = environment.render()
            if not isinstance(drawn, np.ndarray) or drawn.ndim != 3:
                raise JobError("the environment draws no pictures: its render() gave none")
            frames.append(np.asarray(drawn, np.uint8))
            if over:
                return frames, total
            actions = model(torch.from_numpy(observed)[None]).numpy()
            seen, rewards, ends = here.step(actions, [0])
            observed, total, over = seen[0], total + float(rewards[0]), bool(ends.any())
    finally:
        here.close()


def write_film(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write pictures as a moving one, ``.gif``, or as a strip of some of them, ``.png``.

    Raises:
        JobError: the name ends in something else, there is no pillow, or the file cannot be written.
    """
    try:
        from PIL import Image
    except ImportError as cause:
        raise JobError("pictures need pillow: `pip install pillow`, or the extra `images`") from cause
    try:
        match path.suffix:
            case ".gif":
                first, *rest = map(Image.fromarray, frames)
                first.save(path, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)
            case ".png":
                chosen = np.unique(np.linspace(0, len(frames) - 1, STRIP).round().astype(int))
                Image.fromarray(np.concatenate([frames[k] for k in chosen], 1)).save(path)
            case suffix:
                raise JobError(f"--out {path}: a film is a .gif, or a strip of pictures a .png, not {suffix!r}")
    except OSError as cause:
        raise JobError(f"--out {path} cannot be written: {cause}") from cause
