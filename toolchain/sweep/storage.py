"""The study shared by all workers: an Optuna study in SQLite or PostgreSQL."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.engine
import sqlalchemy.exc

from slimdeploy import __version__
from slimdeploy.toolchain.data.dataset import load_dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pipeline.plan import training_inputs
from slimdeploy.toolchain.pipeline.recipe import Recipe
from slimdeploy.toolchain.sweep.options import SweepOptions
from slimdeploy.toolchain.sweep.space import Space

IDENTITY = "slimdeploy_sweep"
"""User attribute of the study: the settings that must be the same for all workers."""
IDENTITY_S = 5.0
"""Maximum time in seconds between the creation of a study and its settings."""
DEATHS = 3
"""Number of missed heartbeats after which a worker counts as dead."""
ATTEMPTS = 5
"""Attempts to create the tables: workers that start together may conflict."""


def masked(url: str) -> str:
    """A storage's URL without its password."""
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return "the storage given"  # it can't be parsed, so any part may be the password


def identity(recipe: Recipe, space: Space, options: SweepOptions) -> dict[str, Any]:
    """The settings that must be the same for all workers: recipe and images, except the varied values. A grid
    may be extended; a sampler needs the same space throughout.

    The location of the images may differ between machines: their content is compared.
    """
    document = {name: _plain(value) for name, value in asdict(recipe).items()}
    for name in ("name", "data", "compare_ratios", "calibrate", "package", "report"):
        del document[name]
    document["network"] = _plain(recipe.network.facts())
    document["train"] = _plain(training_inputs(recipe.train))
    document["finetune"] = _plain(training_inputs(recipe.finetune))
    for name in ("ratio", "params", "macs", "latency_ms", "align"):
        del document["prune"][name]
    del document["train"]["sparsity"]
    sampler = {"method": options.method}
    if options.trials is not None:
        sampler |= space.to_json()
    return {
        "version": __version__,
        "images": load_dataset(recipe.data).digest(),
        "sampler": sampler,
        **document,
    }


def open_study(wanted: dict[str, Any], options: SweepOptions) -> optuna.Study:
    """Create the study, or join an existing one.

    Raises SlimdeployError for an unreachable or unsuitable storage, and for the study of another sweep.
    """
    quiet()
    with storage_errors(options.storage):
        sqlalchemy.engine.make_url(
            options.storage
        ).get_dialect().import_dbapi()  # raises an error that names a missing driver
        storage, sampler = _open_storage(options), _sampler(options)
        try:
            study = optuna.create_study(
                study_name=options.study,
                storage=storage,
                directions=["maximize", "minimize"],
                sampler=sampler,
            )
            found = None
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=options.study, storage=storage, sampler=sampler)
            found = _found_identity(study)
        if found is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(IDENTITY, wanted)
            return study
    if found != wanted:
        where = f"the study {options.study!r} in {masked(options.storage)}"
        if found is None:
            raise SlimdeployError(f"{where} is not a sweep's: give this one another name with `study`")
        key, theirs, ours = _difference(found, wanted)
        raise SlimdeployError(
            f"{where} has {key} = {theirs!r}, this sweep {ours!r}: give this one another name with `study`"
        )
    return study


def _found_identity(study: optuna.Study) -> dict[str, Any] | None:
    """The settings of an existing study.

    Waits for another worker that has just created it and writes them: of two different sweeps that start
    together, one is refused. None if that worker was killed, or if the study isn't a sweep's.
    """
    end = time.monotonic() + IDENTITY_S
    while True:
        found = study.user_attrs.get(IDENTITY)
        if found is not None or study.get_trials(deepcopy=False) or time.monotonic() > end:
            return found
        time.sleep(0.05)


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert errors of the storage to one line that names it, without its password."""
    try:
        yield
    except sqlalchemy.exc.ArgumentError:
        raise SlimdeployError(
            "`storage` is not a database's URL: write it as postgresql+psycopg://USER:PASSWORD@HOST/DATABASE "
            "or sqlite:///FILE"
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise SlimdeployError(f"cannot use the storage {masked(url)}: {reason}") from error
    except optuna.exceptions.StorageInternalError as error:
        raise _unusable(url, error) from error
    except (AssertionError, UnboundLocalError) as error:
        # Optuna fails so while the storage's error is on its way, if it can't store the end of a trial.
        if not isinstance(error.__context__, optuna.exceptions.StorageInternalError):
            raise
        raise _unusable(url, error.__context__) from error
    except RuntimeError as error:  # Optuna's, for tables of another version of itself
        raise SlimdeployError(
            f"cannot use the storage {masked(url)}: {str(error).splitlines()[0]}"
        ) from error


def _unusable(url: str, error: optuna.exceptions.StorageInternalError) -> SlimdeployError:
    """The line about an error of the database that Optuna has wrapped."""
    cause = error.__cause__
    reason = str(getattr(cause, "orig", None) or cause or error).strip().splitlines()[0]
    return SlimdeployError(f"cannot use the storage {masked(url)}: {reason}")


def quiet() -> None:
    """Silence Optuna's log: the sweep prints its own lines."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _open_storage(options: SweepOptions) -> optuna.storages.RDBStorage:
    url = sqlalchemy.engine.make_url(options.storage)
    connect: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        connect = {"timeout": 120}  # s, until the other workers have written
        if url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    elif url.get_backend_name() == "postgresql":
        connect = {"connect_timeout": 10}
    for attempt in range(ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(
                options.storage,
                engine_kwargs={"connect_args": connect, "pool_pre_ping": True},
                heartbeat_interval=options.heartbeat,
                grace_period=DEATHS * options.heartbeat,
            )
        except sqlalchemy.exc.DBAPIError as error:
            if attempt == ATTEMPTS - 1 or not _made_meanwhile(error):
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _made_meanwhile(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Whether another worker created the same table or row at the same time."""
    text = str(error.orig).lower()
    return "already exists" in text or "unique constraint" in text or "locked" in text


def _sampler(options: SweepOptions) -> optuna.samplers.BaseSampler:
    if options.method == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=max(4, min(24, (options.trials or 8) // 3)))
    if options.method == "tpe":
        return optuna.samplers.TPESampler(
            n_startup_trials=min(10, (options.trials or 8) // 2), constant_liar=True
        )
    return optuna.samplers.RandomSampler()  # never used: the points of a grid are queued


def _difference(found: Any, wanted: Any, prefix: str = "") -> tuple[str, Any, Any]:
    """The first key in which two documents differ, with both values."""
    for key in {**wanted, **found} if isinstance(found, dict) and isinstance(wanted, dict) else ():
        ours, theirs = wanted.get(key), found.get(key)
        if ours != theirs:
            if isinstance(ours, dict) and isinstance(theirs, dict):
                return _difference(theirs, ours, f"{prefix}{key}.")
            return prefix + key, theirs, ours
    return prefix or "contents", found, wanted


def _plain(value: Any) -> Any:
    """The document as it is after writing and reading JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
