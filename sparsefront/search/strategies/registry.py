"""The strategies by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from sparsefront.errors import ConfigError, nearest
from sparsefront.search.strategies.cmaes import CmaEs
from sparsefront.search.strategies.evolution import Evolution
from sparsefront.search.strategies.gp import Gp
from sparsefront.search.strategies.grid import Grid
from sparsefront.search.strategies.nsga2 import Nsga2
from sparsefront.search.strategies.qmc import Qmc
from sparsefront.search.strategies.random import Random
from sparsefront.search.strategies.size_stratified import SizeStratified
from sparsefront.search.strategies.strategy import StrategyFamily
from sparsefront.search.strategies.tpe import Tpe

STRATEGIES: Mapping[str, StrategyFamily] = {
    "random": Random(),
    "size_stratified": SizeStratified(),
    "qmc": Qmc(),
    "grid": Grid(),
    "tpe": Tpe(),
    "nsga2": Nsga2(),
    "gp": Gp(),
    "cmaes": CmaEs(),
    "evolution": Evolution(),
}


def strategy_family(name: str) -> StrategyFamily:
    """The strategy of this name, or a user's own class, named ``package.module:Class`` and made without arguments.

    Raises:
        ConfigError: an unknown name, or a module or class that cannot be had.

    >>> strategy_family("random").is_adaptive
    False
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ConfigError(f"strategy={name!r}: {nearest(name, STRATEGIES)}; or your own, as 'package.module:Class'")
    try:
        family = getattr(importlib.import_module(module), attribute)()
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        place = "; its module must be in the current folder, beside the study or on PYTHONPATH"
        raise ConfigError(
            f"strategy={name!r}: must name an importable class that is made without arguments "
            f"({type(error).__name__}: {error}){place if isinstance(error, ModuleNotFoundError) else ''}"
        ) from error
    missing = [
        part for part in ("summary", "source", "is_adaptive", "options", "refusal", "make") if not hasattr(family, part)
    ]
    if missing:
        raise ConfigError(
            f"strategy={name!r}: has no {missing[0]!r}; it must be a class like "
            "sparsefront.search.strategies.strategy.StrategyFamily"
        )
    found: StrategyFamily = family
    return found
