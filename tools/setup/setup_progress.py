"""Shows what a long step is doing: one line that updates itself, or one every 20 s in a log."""

import re
import shutil
import time

NINJA_LINE = re.compile(r'^\s*\[(\d+)/(\d+)\]\s')
UNIT_FILE = re.compile(r'mmbitsplit_unit_\d+\.cpp')  # see setup_mmcv
FINISHED_BUILD = re.compile(r'^\s*Building wheel for .*finished|^\s*Created wheel for ')
ACTIVITIES = (
    (re.compile(r'^\s*Downloading (\S+)(?: \((.*)\))?'), 'downloading'),
    (re.compile(r'^\s*Building wheel for (\S+)'), 'compiling'),
    (re.compile(r'^\s*Installing build dependencies'), 'preparing'),
    (re.compile(r'^\s*Preparing metadata'), 'preparing'),
    (re.compile(r'^\s*Installing collected packages'), 'installing'),
    (re.compile(r'^\s*Collecting (\S+)'), 'looking up'),
    (re.compile(r'^\s*(?:Using cached|Processing) (\S+)'), 'looking up'),
)

SECONDS_BETWEEN_LOG_LINES = 20.0
SECONDS_BETWEEN_REDRAWS = 0.5


class BuildProgress:
    """Reads pip's output line by line and knows how far the work is."""

    def __init__(self):
        self.files_done = 0
        self.files_total = 0
        self.counted = 'files'
        self.activity = 'working'

    def feed(self, line: str) -> None:
        """Take in one line of output."""
        counted = NINJA_LINE.match(line)
        if counted:
            self.files_done, self.files_total = int(counted[1]), int(counted[2])
            if UNIT_FILE.search(line):  # one of them is enough: the last line is the linker's
                self.counted = 'units'
            return
        if FINISHED_BUILD.match(line):
            self.files_done = self.files_total = 0
            self.activity = 'installing'
            return
        for pattern, verb in ACTIVITIES:
            found = pattern.match(line)
            if found:
                self.activity = _phrase(verb, found)
                return

    def describe(self, seconds: float) -> str:
        """For example "37 of 78 files, 3.1 min" or "downloading numpy.whl (16 MB), 0.2 min"."""
        counted = f'{self.files_done} of {self.files_total} {self.counted}'
        return f'{counted if self.files_total else self.activity}, {minutes(seconds)}'


class StatusLine:
    """One line of status on `stream`: overwritten on a terminal, repeated rarely elsewhere."""

    def __init__(self, stream, *, is_terminal: bool | None = None, clock=time.monotonic):
        self._stream = stream
        self._is_terminal = stream.isatty() if is_terminal is None else is_terminal
        self._clock = clock
        self._last_shown = clock() if not self._is_terminal else float('-inf')
        self._drawn = False

    def update(self, text: str) -> None:
        """Show `text` if the last one was shown long enough ago."""
        pause = SECONDS_BETWEEN_REDRAWS if self._is_terminal else SECONDS_BETWEEN_LOG_LINES
        now = self._clock()
        if now - self._last_shown < pause:
            return
        self._last_shown = now
        if self._is_terminal:
            columns = shutil.get_terminal_size().columns
            self._stream.write('\r\x1b[K' + text[:columns - 1])
            self._drawn = True
        else:
            self._stream.write(text + '\n')
        self._stream.flush()

    def finish(self, text: str | None = None) -> None:
        """End the line with `text`, or just clear it away."""
        if self._drawn:
            self._stream.write('\r\x1b[K')
            self._drawn = False
        if text is not None:
            self._stream.write(text + '\n')
            self._last_shown = self._clock() if not self._is_terminal else self._last_shown
        self._stream.flush()


def minutes(seconds: float) -> str:
    """Elapsed time, short: seconds below ten, else minutes with one decimal."""
    return f'{seconds:.0f} s' if seconds < 10 else f'{seconds / 60:.1f} min'


def _phrase(verb: str, found: re.Match) -> str:
    if not found.re.groups:
        return verb
    name = found[1].rstrip('/').rsplit('/', 1)[-1]
    size = found[2] if found.re.groups > 1 else None
    return f'{verb} {name} ({size})' if size else f'{verb} {name}'
