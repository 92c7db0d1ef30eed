"""The small files that describe a run. This module alone reads and writes them.

    config.json     the whole resolved config
    data.txt        the fingerprint of its data
    latents.json    of a second stage: the latents' scale and moments, and what they come from
    frozen.json     of a first stage: the digests of networks that it uses and does not train
    start.json      of a first stage that is initialised from its data: the digest of the statistics
    rival.json      of a first stage: how well PCA or k-means reconstructs the same images
    tracker.json    the run's ids at trackers, by the name of each
    init_from.json  where the weights at step 0 come from

Runs of earlier versions are read through `upgrade`.
"""

import pathlib

from ml_collections import config_dict

from ldm_jax.base import config as config_lib
from ldm_jax.base import disk, download, errors, hub, recipes, remote, upgrade, values

CONFIG = "config.json"
_NUMBERS = values.of(float | tuple[float, ...])


class Record:
    """The record of the run in `path`, a folder that need not be there yet, a gs:// URL or a name.

    Attributes:
      path: of the folder on this machine.
      shown: the path as the user knows it.
    """

    def __init__(self, path):
        self.path, self.shown = pathlib.Path(remote.local(path)), remote.shown(path)

    @property
    def compiled(self) -> pathlib.Path:
        """Where programs of the run are kept once they are compiled: not in what was fetched."""
        home = download.cache() if self.shown.startswith(hub.HF) else self.path
        return home / "compilation_cache"

    def exists(self) -> bool:
        return disk.there(self.path / CONFIG)

    @property
    def config(self) -> config_dict.ConfigDict:
        """The run's config, locked; a folder that is no run is a UsageError.

        Paths of a first stage, a text encoder or a vocabulary inside the run, which converted and
        published runs have, are relative in config.json and absolute here.
        """
        saved = self._saved()
        for player in saved.get("optim", {}).values():
            if "ema" in player:  # as its default is, see base/defaults.py
                player["ema"] = config_lib.one_or_several(player["ema"])
        if "distil" in saved:
            guidance = config_lib.one_or_several(saved["distil"]["guidance"])
            saved["distil"] = saved["distil"] | {"guidance": guidance}  # which upgrade may share
        with disk.reading(f"{self.shown}/{CONFIG}"):
            config = self._absolute(config_lib.from_dict(saved))
        config_lib.import_plugins(config.get("plugins", ()))
        return config

    def _absolute(self, config) -> config_dict.ConfigDict:
        """The config with absolute paths of what lies inside the run."""
        places = [(config, "first_stage"), (config, "encoder")]
        places += [(config.get("data", {}), "vocabulary")]
        for conditioner in config.get("conditioners", {}).values():
            places += [(conditioner, "weights"), (conditioner, "tokenizer")]
        with config.unlocked():
            for group, key in places:
                if (inside := group.get(key)) and (self.path / inside).exists():
                    group[key] = str(self.path / inside)
        return config

    @property
    def parameter_names(self) -> dict[str, str]:
        """{old name: new name} of parameters, if an earlier version wrote the run; see upgrade."""
        labels = self._saved().get("conditioners", {}) if self.exists() else {}
        return upgrade.parameter_names(labels)

    def _saved(self) -> dict:
        if not self.exists():
            raise errors.UsageError(f"{self.shown} is not a run: it holds no {CONFIG}.")
        with disk.reading(f"{self.shown}/{CONFIG}"):
            return upgrade.config(disk.read_json(self.path / CONFIG))

    def is_of(self, config) -> bool:
        """Whether config.json holds exactly `config`."""
        return self.exists() and disk.read_json(self.path / CONFIG) == config_lib.plain(config)

    def write_config(self, config):
        disk.write_text(self.path / CONFIG, config_lib.to_json(config))

    @property
    def data(self) -> str:
        """The fingerprint of the data; "" where none is recorded."""
        file = self.path / "data.txt"
        return disk.read_text(file).strip() if disk.there(file) else ""

    def write_data(self, fingerprint: str):
        disk.write_text(self.path / "data.txt", fingerprint + "\n")

    @property
    def latents(self) -> dict:
        """{"scale"[, "shift"], ..., "origin": digests and where from}; {} without one."""
        found = self._read("latents.json")
        for key in {"scale", *found} & {"scale", "shift"} if found else ():
            values.check(f"{self.shown}/latents.json: {key}", found.get(key), _NUMBERS)
        return found

    @property
    def frozen(self) -> dict:
        """{name: digest} of the frozen networks that the run began with."""
        return self.latents.get("origin", {}) | self._read("frozen.json")

    @property
    def rival(self) -> dict:
        """How well PCA or k-means reconstructs the run's images; {} where nothing is recorded."""
        return self._read("rival.json")

    @property
    def tracker(self) -> dict:
        """{tracker: the run's id there}."""
        found = self._read("tracker.json")
        for name, run_id in found.items():
            values.check(f"{self.shown}/tracker.json: {name}", run_id, values.Text())
        return found

    def write(self, **files: dict):
        """write(latents=..., init_from=...) writes latents.json and init_from.json."""
        for name, content in files.items():
            disk.write_json(self.path / f"{name}.json", content)

    def inside(self, path) -> str:
        """The path of something inside the run, relative to it, as config.json holds it."""
        return str(pathlib.Path(path).relative_to(self.path))

    def forget(self, *names: str):
        """Removes files that must not be there when another run begins in this folder."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def _read(self, name) -> dict:
        file = self.path / name
        return disk.read_json(file) if disk.there(file) else {}


def load(spec: str, overrides: dict[str, str] | None = None) -> config_dict.ConfigDict:
    """The config that `--config` names, with overrides {"a.b": "text"}.

    spec: a recipe's name or file, `NAME[:variant]` or `path.py[:variant]`, or a run: its folder, or
    its config.json. A word that names both is the recipe; `./word` is the run.

    Raises:
      UsageError: a missing file, an unknown variant, an unknown key or a wrong type, in one line.
    """
    run = spec.removesuffix(CONFIG) or "."
    recipe = run == spec and recipes.find(spec.partition(":")[0])
    if not recipe and (record := Record(run)).exists():
        return config_lib.overridden(record.config, overrides)
    return config_lib.load(spec, overrides)


def read(run) -> config_dict.ConfigDict:
    """The config of a run; see Record."""
    return Record(run).config
