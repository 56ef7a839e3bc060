"""The option of `pytest --fork mine.py`. It is here because pytest reads this file before it knows what `mine.py` on
its command line means; everything else is in tests/conftest.py."""


def pytest_addoption(parser):
    parser.addoption("--fork", metavar="'MINE.py [FLAGS]'", help="run what every algorithm has to pass on this script")
