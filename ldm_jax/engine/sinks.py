"""Where a run's numbers, pictures and alarms are shown while it trains: TensorBoard, trackers.

The files of a run are its record (engine/log.py); what shows it may fail, and the run goes on.
"""

import contextlib
import threading
import time

import tensorboardX

ROOM = 10.0  # seconds that TensorBoard may take for one event, or for its end


class Sink:
    """One place that shows a run; no method may raise, or wait for long."""

    def numbers(self, step: int, values: dict):
        """values: {name: float}."""

    def picture(self, step: int, name: str, picture):
        """picture: uint8 [h, w, 3]."""

    def alarm(self, text: str):
        """What somebody should look at, in a line."""


class Board(Sink):
    """TensorBoard's event file.

    Args:
      folder: that it is written to.
      purge: step from which on the events of an earlier session no longer count; None: all do.
    """

    def __init__(self, folder, purge: int | None):
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def numbers(self, step, values):
        if self._lives():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step, name, picture):
        if self._lives():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self):
        if self._lives():
            # Closing waits for the thread, which may die of a full disk just then.
            closing = threading.Thread(target=_quietly(self._writer.close), daemon=True)
            closing.start()
            closing.join(ROOM)

    def _lives(self) -> bool:
        """Whether TensorBoard's queue takes one more event.

        Its thread dies of a full disk, and a call would then wait for room in the queue for ever.
        We alone fill it, so the room that is seen stays; on slow storage we wait for some.
        """
        writer = getattr(self._writer.file_writer, "event_writer", None)
        if getattr(writer, "_worker", None) is None:
            return True
        until = time.monotonic() + ROOM
        while writer._worker.is_alive() and writer._event_queue.full():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return writer._worker.is_alive()


def _quietly(action):
    def act():
        with contextlib.suppress(Exception):  # storage that takes nothing; there were alarms
            action()

    return act
