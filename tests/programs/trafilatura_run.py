"""python -m tests.programs.trafilatura_run < [page, ...] in .venv-rival: trafilatura's text of each page of HTML.

Prints {name of the settings: [text, ...]}.
"""

import json
import logging
import sys


def main() -> None:
    from trafilatura import extract

    logging.disable(logging.CRITICAL)
    pages = json.load(sys.stdin)
    settings = {"trafilatura": {}, "trafilatura, recall": {"favor_recall": True}}
    json.dump(
        {name: [extract(page, **chosen) or "" for page in pages] for name, chosen in settings.items()}, sys.stdout
    )


if __name__ == "__main__":
    main()
