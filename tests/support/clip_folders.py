"""A folder of clips as people have them: frames of one clip are nearly equal, and the class shows in none of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLIP = r"([^/]+/clip\d+)_"  # the `data.group` of its clips


def write_clips(root: Path, clips: int = 10, frames: int = 20, side: int = 48, parts: tuple[str, ...] = ("",)) -> Path:
    """Write root/[part/]<class>/clipNN_NNN.png, `clips` of each class; frames are dealt to the parts in turn."""
    rng = np.random.default_rng(0)
    for name in ("good", "bad"):
        for clip in range(clips):
            scene = rng.integers(0, 256, (side, side, 3))
            for frame in range(frames):
                path = root / parts[frame % len(parts)] / name / f"clip{clip:02d}_{frame:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noisy = np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(path)
    return root
