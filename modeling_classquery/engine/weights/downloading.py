"""Getting a published file from where it is: Google Drive, with its pages in between, or a plain address."""

import contextlib
import importlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from huggingface_hub import is_offline_mode
from tqdm.auto import tqdm

from classquery.checkpoint_files_classquery import CheckpointError
from classquery.engine.weights.zoo import PublishedWeights


_MAX_QUOTED = 200
# Of Drive: a warning, the file behind it, and one to spare.
_MAX_PAGES = 3
_MAX_PAGE_BYTES = 2**20
# To connect, and between bytes.
_TIMEOUT_SECONDS = (10, 60)
_RETRIES = 4
_GOOGLE = re.compile(r"(.+\.)?(google|googleusercontent)\.com")

# Pages that come instead of a file, by their address or by their text, and what they mean.
_ADDRESSES = {
    r"accounts\.google\.": "asks to log in: the file is not public any more, or not for everybody",
    r"consent\.google\.": "asks for consent to cookies first",
    r"\.google\.[a-z.]+/sorry/": "takes this network for a robot; this ends after a while",
}
_TEXTS = {
    r"quota|too many users": "says that too many people fetched the file lately (its quota is exceeded); this ends "
    "after a day or so",
    r"unusual traffic": "takes this network for a robot; this ends after a while",
}
_VIRUS_SCAN = "warns that it cannot scan the file for viruses, and what its button leads to is no file"


def download(weights: PublishedWeights, path: Path) -> None:
    """Get a file, or go on where an earlier try broke off: what came is kept beside `path` until all is there.

    Raises:
        CheckpointError: If it cannot be had; says why, and how to fetch it by hand.
    """
    if is_offline_mode():
        raise _by_hand(weights, "HF_HUB_OFFLINE is set, so that nothing is fetched")
    gdown, requests = _downloader(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _explained(weights, gdown, requests):
        with requests.Session() as session:
            address, identity = _find_file(session, weights)
        _give_up_others(path, identity)
        _transfer(gdown, address, path, weights.name)
        _identity_path(path).unlink()


def _downloader(weights: PublishedWeights) -> tuple[ModuleType, ModuleType]:
    """gdown, and the HTTP library that it brings."""
    if importlib.util.find_spec("gdown") is None:
        raise _by_hand(weights, "fetching it needs gdown (pip install 'classquery[weights]')")
    return importlib.import_module("gdown"), importlib.import_module("requests")


@contextlib.contextmanager
def _explained(weights: PublishedWeights, gdown: ModuleType, requests: ModuleType) -> Iterator[None]:
    """The border: what goes wrong on the way becomes one message."""
    host = urlsplit(weights.link).hostname
    try:
        yield
    except requests.HTTPError as error:
        raise _by_hand(weights, f"{host} answered {error.response.status_code} {error.response.reason}") from error
    except (requests.RequestException, gdown.exceptions.DownloadError) as error:
        is_reached = isinstance(error, gdown.exceptions.DownloadError) and not _is_of_network(error, requests)
        what = "broke the transfer off" if is_reached else "cannot be reached"
        raise _by_hand(weights, f"{host} {what} ({_in_one_line(error)})") from error


def _by_hand(weights: PublishedWeights, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{weights.name} is not here: {reason}. What came so far is kept: try again, or fetch it by hand from "
        f"{weights.link} and save it as {weights.path}"
    )


def _is_of_network(error: BaseException, requests: ModuleType) -> bool:
    return isinstance(error.__cause__, requests.ConnectionError | requests.Timeout)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MAX_QUOTED]


# Pages


def _find_file(session, weights: PublishedWeights) -> tuple[str, str]:
    """Go through the pages before a file.

    Returns:
        Its address, and what tells it from another one there.

    Raises:
        CheckpointError: If there is no file behind them; says what there is instead.
    """
    address: str | None = weights.url or f"https://drive.google.com/uc?id={weights.drive}"
    for _ in range(_MAX_PAGES):
        with session.get(address, stream=True, timeout=_TIMEOUT_SECONDS) as response:
            if not response.headers.get("Content-Type", "").startswith("text/html"):
                response.raise_for_status()
                headers = (response.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length"))
                return response.url, "\n".join(headers)
            page = response.raw.read(_MAX_PAGE_BYTES, decode_content=True).decode(errors="replace")
            meaning = _meaning(response.status_code, response.url, page)
            address = None if meaning else _address_behind(page)
        if address is None:
            break
    meaning = meaning or (_VIRUS_SCAN if "virus" in page.lower() else _title(page))
    raise _by_hand(weights, f"{urlsplit(weights.link).hostname} sends a page instead of the file: it {meaning}")


def _meaning(status: int, address: str, page: str) -> str | None:
    """What a page wants, if it is one of those that lead nowhere."""
    if status == 404:
        return "says that there is no such file any more"
    # Only what is written: a warning about viruses may bring the word quota in a script.
    text = re.sub(r"(?is)<(script|style).*?</\1>", "", page)
    by_address = (meaning for pattern, meaning in _ADDRESSES.items() if re.search(pattern, address))
    by_text = (meaning for pattern, meaning in _TEXTS.items() if re.search(pattern, text, re.IGNORECASE))
    return next(itertools.chain(by_address, by_text), None)


def _address_behind(page: str) -> str | None:
    """Where the button of a warning leads, as gdown reads it; None if there is none, or it leads out of Google."""
    pages = importlib.import_module("gdown.download")
    try:
        address = pages.get_url_from_gdrive_confirmation(page)
    except pages.FileURLRetrievalError:
        return None
    parts = urlsplit(address)
    return address if parts.scheme == "https" and _GOOGLE.fullmatch(parts.hostname or "") else None


def _title(page: str) -> str:
    title = re.search(r"(?is)<title[^>]*>(.*?)</title>", page)
    return f"is called {' '.join(title[1].split())[:_MAX_QUOTED]!r}" if title else "says nothing that is known here"


# Bytes


def _give_up_others(path: Path, identity: str) -> None:
    """Remove what came of another file, which was at the same place before; gdown would go on with it."""
    noted = _identity_path(path)
    if not noted.exists() or noted.read_text(encoding="utf-8") != identity:
        _remove_partial(path)
    noted.write_text(identity, encoding="utf-8")


def _identity_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.identity")


def _remove_partial(path: Path) -> None:
    for partial in path.parent.glob(f"{path.name}????????.part"):
        partial.unlink()


def _transfer(gdown: ModuleType, address: str, path: Path, title: str) -> None:
    """Fetch the bytes of a file, from the start if the server sends no parts."""
    with tqdm(desc=title, unit="B", unit_scale=True, disable=None) as bar:
        try:
            _fetch(gdown, address, path, _shown_on(bar))
        except gdown.exceptions.DownloadError as error:
            if "byte range" not in str(error):
                raise
            _remove_partial(path)
            _fetch(gdown, address, path, _shown_on(bar))


def _fetch(gdown: ModuleType, address: str, path: Path, progress: Callable[[int, int | None], None]) -> None:
    gdown.download(
        address,
        str(path),
        quiet=True,
        use_cookies=False,
        resume=True,
        progress=progress,
        timeout=_TIMEOUT_SECONDS,
        retries=_RETRIES,
    )


def _shown_on(bar: tqdm) -> Callable[[int, int | None], None]:
    def show(received: int, total: int | None) -> None:
        if not bar.n:
            bar.reset(total)
        bar.update(received - bar.n)

    return show
