"""Reads ../fixtures/events.out.tfevents.0.artel with TensorBoard and checks what is in it. The file is
written by `ARTEL_WRITE_EVENTS=1 cargo test -p train events`.

Needs `pip install tensorboard`. Checked with tensorboard 2.21.

Run: python events.py [FOLDER]   prints the scalars of another folder's run
"""

import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "fixtures"
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    if len(sys.argv) > 1:
        for tag in tags:
            last = found.Scalars(tag)[-1]
            print(tag, len(found.Scalars(tag)), "values, last", last.step, last.value)
        return
    assert tags == ["loss", "rate"], tags
    loss = [(event.wall_time, event.step, event.value) for event in found.Scalars("loss")]
    expected = [(999.5, 1, 4.0), (1000.0, 2, 2.0), (1000.5, 300, 4 / 300)]
    for (time, step, value), (at, number, number_value) in zip(loss, expected, strict=True):
        assert (time, step) == (at, number) and abs(value - number_value) < 1e-6, loss
    print("TensorBoard reads", loss)


main()
