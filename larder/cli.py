"""The command line `larder`: global options, sub-commands found in `larder/commands/`, errors as one clear line."""

from __future__ import annotations

import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command as build_command

from feature_repo.errors import LarderError
from feature_repo.settings import SettingsError
from larder import commands
from larder.session import Session

#: The order of a first day; commands that are not named here follow.
_ORDER = (
    "demo",
    "services",
    "data",
    "features",
    "events",
    "items",
    "ingest",
    "train",
    "evaluate",
    "models",
    "serve",
    "bench",
)

_HELP = """\
Larder: features, models and recommendations, from events to a served answer.

\b
Examples:
  larder demo --dataset simulator      the whole story
  larder -p simulator models list      one project's models
  larder settings                      every setting, its value and where it came from
"""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: readable everywhere, and rich is slow to import
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Commands(TyperGroup):
    """Finds sub-commands: each module of `larder/commands/` has an `app`, mounted under the module's name.

    A module is imported only when its command runs, or for the list in `larder --help`.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the sub-commands."""
        names = [m.name.replace("_", "-") for m in pkgutil.iter_modules(commands.__path__)]
        return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return one sub-command, None if there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        command = build_command(module.app)
        command.name = cmd_name
        _tidy(command)
        return command


def _tidy(command: Any) -> None:
    """Keep the lines of a docstring's section "Examples" as they are written; drop options of shell completion."""
    command.help = re.sub(r"\n\n(Examples?)(?:\n-+|:)\n", "\n\n\b\n\\1:\n", command.help or "")
    command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    for nested in getattr(command, "commands", {}).values():
        _tidy(nested)


@app.callback(cls=Commands, help=_HELP)
def options(
    ctx: typer.Context,
    project: Annotated[str | None, typer.Option("--project", "-p", help="The shop: its data, plan and models.")] = None,
    home: Annotated[Path | None, typer.Option(help="Directory of everything Larder writes.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings (default: larder.toml).")] = None,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Take the global options."""
    session: Session = ctx.obj
    session.config, session.debug = config, debug
    session.overrides |= {"project": project, "home": home}


def main() -> None:
    """Run the command line; an error a user can do something about is one line and exit code 1, without traceback."""
    session = Session()
    try:
        app(prog_name="larder", obj=session)
    except (LarderError, SettingsError, OSError) as error:
        if session.debug:
            raise
        hint = " (larder --debug shows where)" if isinstance(error, OSError) else ""
        print(f"larder: {error}{hint}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
