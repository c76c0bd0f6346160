"""How candidates of a search come to their masks: what `[masks]` says, and what a space may say beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsefront.errors import ConfigError, SpaceError, nearest
from sparsefront.search.methods.pruners import PRUNERS
from sparsefront.spaces.allocations import ALLOCATIONS
from sparsefront.spaces.controls import CONTROLS
from sparsefront.spaces.domains import shown
from sparsefront.spaces.entries import checked_pattern
from sparsefront.spaces.patterns import parse_pattern
from sparsefront.spaces.pruning import Pruning
from sparsefront.spaces.space import SEARCHED, Space
from sparsefront.study.methods import check_control_names, check_scores
from sparsefront.study.search_sections import MasksSection, SearchTrainingSection
from sparsefront.study.sections import ModelSection
from sparsefront.trainables.networks import DRAWN, METHOD_FIELDS
from sparsefront.trainables.pruning import SCORES

#: Methods whose candidates are chains of trainings, with a mask cut from one to the next, and those that cut masks of
#: initial weights; masks of the others change while they train.
CHAINS = [name for name, p in PRUNERS.items() if p.method.needs_parent]
AT_INIT = [name for name, p in PRUNERS.items() if p.method.when == "init"]


@dataclass(frozen=True)
class MaskRules:
    """What a study says of masks and of the training and networks that they are of, for spaces to be held against."""

    masks: MasksSection
    training: SearchTrainingSection
    model: ModelSection

    def check_section(self) -> None:
        """Refuse what the values of `[masks]` are not, or contradict each other in."""
        allocation = self.masks.allocation
        if allocation not in ALLOCATIONS:
            raise ConfigError(f"masks.allocation={allocation!r}: {nearest(allocation, ALLOCATIONS)}")
        self._check_allocation("masks", allocation, self.masks.kind)
        self._check_method()
        self._check_pattern()

    def check(self, where: str, space: Space) -> None:
        """Refuse what a space, written at `where`, says of masks and must not."""
        self._check_methods(where, space)
        self._check_kinds(where, space)
        self._check_dense(where, space)

    def check_controls(self, where: str, controls: Sequence[str], space: Space) -> None:
        """Refuse controls, written at `where`, that say nothing of an arm's candidates, or cannot be made of them."""
        check_control_names(where, controls)
        if not controls:
            return
        names, patterns = self.methods_of(space), self._patterns_beside(space)
        is_removing = bool(space.ends_of("masks.sparsity", self.masks.sparsity)[1])
        if not is_removing and all(parse_pattern(pattern).density is None for pattern in patterns):
            raise ConfigError(
                f"{where}: {controls[0]!r} is of networks under a mask, and masks.sparsity is 0 in all candidates; set "
                "it, in [masks] or in the space, or remove the control"
            )
        is_tied = any(pattern != "unstructured" for pattern in patterns)
        levels = {n: PRUNERS[n].method for n in names if n in PRUNERS and PRUNERS[n].method.when == "levels"}
        going_on = [n for n, method in levels.items() if method.keeps_weights]
        for control in controls:
            row = CONTROLS[control]
            if row.of_drawn and DRAWN in names and space.bits is None:
                raise ConfigError(
                    f"{where}: {control!r} {row.of_drawn}, and this arm draws masks; give what draws them an arm "
                    "without it"
                )
            if control == "shuffled" and "weight" in space.choices_of("masks.kind", self.masks.kind) and is_tied:
                raise ConfigError(
                    f"{where}: 'shuffled' moves survivors between layers, which patterns tie to them; use "
                    "'shuffled_layers'"
                )
            if row.shuffle is not None and going_on:
                raise ConfigError(
                    f"{where}: {control!r} needs weights at other positions, and a level of masks.method="
                    f"{going_on[0]!r} goes on from those of its own mask alone; remove it, or give the method an arm "
                    "without it"
                )

    @property
    def pruning(self) -> Pruning | None:
        """How candidates prune themselves, or are pruned at initialisation, where the space does not say."""
        if self.masks.method is None:
            return None
        method = PRUNERS[self.masks.method].for_masks(self.masks.kind)
        is_divided = self.masks.kind == "node" or (not method.needs_parent and method.counts_of is None)
        return replace(method, allocation=self.masks.allocation) if is_divided else method

    def methods_of(self, space: Space) -> list[str]:
        """Methods by which candidates of a space may come to their masks; 'random' where they are drawn."""
        return [str(name) for name in space.choices_of("masks.method", self.masks.method or DRAWN)]

    def _patterns_beside(self, space: Space) -> list[str]:
        """Patterns that weight masks of a space may have: of a method its own, where none is said."""
        said = [str(pattern) for pattern in space.choices_of("masks.pattern", self.masks.pattern)]
        names = self.methods_of(space)
        return list(dict.fromkeys(_pattern_beside(name, pattern) for name in names for pattern in said))

    def scores(self, space: Space) -> bool:
        """Whether masks of candidates of a space are cut from initial weights, or by scores of examples."""
        for name in self.methods_of(space):
            if name in AT_INIT:
                return True
            method = PRUNERS[name].method if name in PRUNERS else None  # else masks are drawn
            if method is None or not method.reads("score"):
                continue
            scores = space.choices_of("masks.score", method.score)
            rows = [SCORES[str(score)] for score in scores if score in SCORES]
            if any(row.reads_examples_in_training or ("examples" in row.needs and method.needs_parent) for row in rows):
                return True
        return False

    def _check_method(self) -> None:
        """Refuse what the study's method is not, and masks that it does not make."""
        name = self.masks.method
        if name is None:
            return
        if name == DRAWN:
            raise ConfigError(f"masks.method={name!r}: masks are drawn where there is no method; leave it out")
        if name not in PRUNERS:
            raise ConfigError(f"masks.method={name!r}: {nearest(name, PRUNERS)}")
        self._check_masks_of("", name, [self.masks.kind], [self.masks.allocation])
        own = PRUNERS[name].method.allocation
        is_fixed = PRUNERS[name].method.when == "levels" and self.masks.kind == "weight"
        if is_fixed and own is not None and self.masks.allocation != own:
            raise ConfigError(
                f"masks.allocation={self.masks.allocation!r}: masks.method={name!r} divides a sparsity by {own!r}; "
                "leave it out"
            )

    def _check_pattern(self) -> None:
        """Refuse a pattern that the rest of [masks] contradicts."""
        masks = self.masks
        try:
            checked_pattern("masks.pattern", masks.pattern)
        except SpaceError as error:
            raise ConfigError(str(error)) from error
        named = _pattern_beside(masks.method or DRAWN, masks.pattern)
        pattern = parse_pattern(named)
        if masks.pattern != "unstructured" and masks.kind != "weight":
            raise ConfigError(
                f"masks.pattern={masks.pattern!r}: is one of weight masks, and masks.kind is {masks.kind!r}; change "
                "one of the two"
            )
        if pattern.density is not None and masks.sparsity not in (0.0, 1 - pattern.density):
            whose = (
                f"masks.pattern={named!r}" if named == masks.pattern else f"{named!r} of masks.method={masks.method!r}"
            )
            raise ConfigError(
                f"masks.sparsity={masks.sparsity!r}: {whose} is one of its own, {1 - pattern.density:g}; leave it out"
            )

    def _check_kinds(self, where: str, space: Space) -> None:
        """Refuse kinds, patterns, sparsities and allocations of a space that do not fit each other."""
        kinds = space.choices_of("masks.kind", self.masks.kind)
        patterns = self._patterns_beside(space)
        searched = {d.key for d in space.dimensions}
        structured = [p for p in space.given("masks.pattern") if p != "unstructured"]
        if structured and "weight" not in kinds:
            raise ConfigError(
                f"{where}.masks.pattern={structured[0]!r}: is one of weight masks, and masks.kind is 'node'; write "
                "'unstructured', or change the kind"
            )
        densities = {str(p): parse_pattern(str(p)).density for p in patterns}
        if kinds == ["weight"] and None not in densities.values():
            named = " and ".join(f"{name!r} has sparsity {1 - (d or 0.0):g}" for name, d in densities.items())
            for key, fixed in (("masks.sparsity", "sparsity = 0.0"), ("masks.allocation", "allocation = 'uniform'")):
                if key in searched:
                    raise ConfigError(
                        f"{where}.{key}: cannot be searched where masks.pattern={named} alone; remove it, or write "
                        f"{fixed} where the pattern is"
                    )
            if SEARCHED in space.choices_of("masks.allocation", self.masks.allocation):
                raise ConfigError(
                    f"{where}.masks.allocation='searched': has nothing to divide where masks.pattern={named} alone; "
                    "write 'uniform'"
                )
            asked = space.constants.get("masks.sparsity", 0.0)
            if asked and any(asked != 1 - (d or 0.0) for d in densities.values()):
                raise ConfigError(f"{where}.masks.sparsity={asked!r}: masks.pattern={named} alone; write 0")
        blocks = [p for p in structured if densities[str(p)] is None]
        if blocks and not space.ends_of("masks.sparsity", self.masks.sparsity)[1]:
            raise ConfigError(
                f"{where}.masks.pattern={blocks[0]!r}: needs masks.sparsity > 0, in [masks] or in the space; else "
                "nothing is removed"
            )
        for value in space.given("masks.allocation"):
            if value not in (*ALLOCATIONS, SEARCHED):
                known = nearest(str(value), (*ALLOCATIONS, SEARCHED))
                raise ConfigError(f"{where}.masks.allocation={value!r}: {known}")
            for kind in kinds:
                self._check_allocation(f"{where}.masks", str(value), str(kind))
        allocation = self.masks.allocation
        if "node" in kinds and "node" not in ALLOCATIONS[allocation].kinds and not space.given("masks.allocation"):
            raise ConfigError(
                f"{where}.masks.kind='node': masks.allocation={allocation!r} divides weight masks only; set another "
                "allocation, here or in [masks]"
            )

    def _check_dense(self, where: str, space: Space) -> None:
        """Refuse dimensions of masks that remove nothing, whatever they are."""
        if space.ends_of("masks.sparsity", self.masks.sparsity)[1]:
            return
        without_effect = {"masks.allocation": "allocation = 'uniform'", "masks.shares": "allocation = 'uniform'"}
        # N:M is a sparsity of its own: which entries it keeps, and whether a mask is such, still counts.
        is_own = any(parse_pattern(pattern).density is not None for pattern in self._patterns_beside(space))
        if not is_own or "weight" not in space.choices_of("masks.kind", self.masks.kind):
            without_effect |= {"masks.draw": "draw = 0", "masks.kind": f"kind = {self.masks.kind!r}"}
        for dimension in space.dimensions:
            if (fixed := without_effect.get(dimension.key)) is not None:
                key = dimension.key.replace("shares", "allocation")
                raise ConfigError(
                    f"{where}.{key}: is searched where masks.sparsity is 0, and no mask removes anything; set "
                    f"masks.sparsity > 0, in [masks] or in the space, or write {fixed} where it is 0"
                )

    def _check_masks_of(self, where: str, name: str, kinds: Sequence[object], allocations: Sequence[object]) -> None:
        """Refuse kinds of masks that a method does not make, and sizes that are not known beforehand."""
        kind, row = "node", PRUNERS[name]
        if "weight" in kinds and "weight" not in row.kinds:
            raise ConfigError(
                f"masks.kind='weight': {where}masks.method={name!r} prunes nodes alone; set kind = 'node' and an "
                "allocation such as 'uniform'"
            )
        if kind not in kinds:
            return
        if kind not in row.kinds or row.method.counts_of is not None:
            able = [n for n in PRUNERS if kind in PRUNERS[n].kinds and PRUNERS[n].method.counts_of is None]
            raise ConfigError(
                f"masks.kind={kind!r}: {where}masks.method={name!r} makes no masks of {kind}s whose counts are known "
                f"before a network is trained, as a search needs them; use one of {', '.join(able)}, or 'weight'"
            )
        if "global" in allocations:
            raise ConfigError(
                f"masks.allocation='global': leaves it to the scores of {where}masks.method={name!r} how many nodes a "
                "layer keeps, and a search must know the size of a network before; write allocation = 'uniform' beside "
                "the method, which brings 'global' unless something is said there"
            )

    def _check_methods(self, where: str, space: Space) -> None:
        """What a space must and may say of how candidates are pruned."""
        keys = space.keys
        names = self.methods_of(space)
        for value in space.choices_of("masks.method", DRAWN):
            if value not in (DRAWN, *PRUNERS):
                raise ConfigError(f"{where}.masks.method={shown(value)}: {nearest(str(value), (DRAWN, *PRUNERS))}")
        chains = [name for name in names if name in CHAINS]
        pruned = [name for name in names if name != DRAWN]
        read = {field for field in METHOD_FIELDS if any(PRUNERS[name].method.reads(field) for name in pruned)}
        for field in METHOD_FIELDS:
            if f"masks.{field}" in keys and field not in read:
                reader = next(name for name in ("imp", "gmp", "rigl") if PRUNERS[name].method.reads(field))
                what = {"imp": "pruning chains", "gmp": "a gradual rise", "rigl": "masks that are rewired"}[reader]
                what = "pruning methods" if field == "score" else what
                unread = f", and not of masks.method={pruned[0]!r}" if pruned else ""
                raise ConfigError(
                    f"{where}.masks.{field}: is of {what}{unread}; set masks.method = {reader!r}, or remove it"
                )
        if not pruned:
            return
        told = f"masks.method={pruned[0]!r}"
        kinds = space.choices_of("masks.kind", self.masks.kind)
        able = {"kind", "sparsity", "method", *read} | ({"pattern"} if "weight" in kinds else set())
        if "node" in kinds or not any(PRUNERS[name].method.when == "levels" for name in pruned):
            able.add("allocation")
        if any(name == DRAWN or PRUNERS[name].method.draws_positions for name in names):
            able.add("draw")
        if SEARCHED in space.choices_of("masks.allocation", ""):
            raise ConfigError(
                f"{where}.masks.allocation={SEARCHED!r}: divides masks that are drawn, and not those of {told}; name "
                "another allocation"
            )
        for key in sorted(keys):
            brought = {self._allocation_of(pruned[0], str(kind)) for kind in kinds}
            if key == "masks.allocation" and space.constants.get(key) in brought:
                continue  # in place of what a ready space brings
            if key == "masks.draw" and space.constants.get(key) == 0:
                continue  # in place of the draws of other arms
            if key == "masks.pattern" and space.constants.get(key) == "unstructured":
                continue  # in place of the patterns of other arms
            if key == "masks.draw" and key.removeprefix("masks.") not in able:
                raise ConfigError(
                    f"{where}.{key}: numbers masks that are drawn, and those of {told} are not; remove it, or add "
                    "'random' to the methods"
                )
            if key.startswith("masks.") and key.removeprefix("masks.") not in able:
                raise ConfigError(
                    f"{where}.{key}: cannot be set beside {told}, which says what is removed; remove one of them"
                )
        for name in pruned:
            of_nodes, of_weights = (
                space.choices_of("masks.allocation", self._allocation_of(name, kind)) for kind in ("node", "weight")
            )
            self._check_masks_of("" if "masks.method" not in keys else f"{where}.", name, kinds, of_nodes)
            self._check_pattern_of(where, name, space, of_weights)
            self._check_score_of(where, name, space, kinds)
        has_own = kinds == ["weight"] and None not in {parse_pattern(p).density for p in self._patterns_beside(space)}
        if not has_own and not space.ends_of("masks.sparsity", self.masks.sparsity)[1]:
            raise ConfigError(f"{told}: needs masks.sparsity > 0, in [masks] or in the space; else nothing is pruned")
        for name in chains:
            self._check_chain(where, space, name, chains)
        for name in pruned:
            self._check_schedule(where, space, name)

    def _check_schedule(self, where: str, space: Space, name: str) -> None:
        """Refuse updates of masks that may end before they begin: a whole part of the space would be no candidates."""
        method = PRUNERS[name].method
        if not method.reads("begin_fraction"):
            return
        begin = space.ends_of("masks.begin_fraction", method.begin_fraction)[1]
        end = space.ends_of("masks.end_fraction", method.end_fraction)[0]
        if begin > end:
            raise ConfigError(
                f"{where}.masks: begin_fraction up to {begin:g} must be at most every end_fraction, from {end:g} on, "
                f"with masks.method={name!r}; narrow one of them"
            )

    def _check_pattern_of(self, where: str, name: str, space: Space, allocations: Sequence[object]) -> None:
        """Refuse patterns that a method cannot keep to, or that leave sizes to training."""
        method = PRUNERS[name].method
        is_own = "masks.pattern" in space.keys
        ap_fraction = space.ends_of("masks.ap_fraction", method.ap_fraction)[1]
        for pattern in map(str, space.choices_of("masks.pattern", self.masks.pattern)):
            if pattern == "unstructured":
                continue
            key = f"{f'{where}.' if is_own else ''}masks.pattern={pattern!r}"
            if ap_fraction and method.reads("ap_fraction"):
                raise ConfigError(
                    f"{key}: masks.method={name!r} with ap_fraction up to {ap_fraction:g} removes single weights, and "
                    "not by a pattern; leave one of them out"
                )
            if method.counts_of is not None:
                raise ConfigError(
                    f"{key}: masks.method={name!r} finds ratios of single weights, and not of a pattern; write "
                    "'unstructured' beside it, or use 'random_erk'"
                )
            if parse_pattern(pattern).density is not None:
                continue
            if method.when == "levels" or method.rounds > 1:
                raise ConfigError(
                    f"{key}: of blocks that go little by little, as masks.method={name!r} has it, fewer may be left "
                    "than at once, and a search must know the size of a network before; use N:M, or a method that "
                    "prunes at once or in training"
                )
            if "global" in allocations:
                raise ConfigError(
                    f"{key}: masks.allocation='global' leaves it to the scores of masks.method={name!r} how many "
                    "blocks a layer keeps, and a search must know the size of a network before; name an allocation "
                    "with a count for each layer beside the method, such as 'erk'"
                )

    def _check_score_of(self, where: str, name: str, space: Space, kinds: Sequence[object]) -> None:
        """Refuse scores that a method cannot rank by."""
        method = PRUNERS[name].method
        scores = space.choices_of("masks.score", None)
        for score in scores if scores != [None] and method.reads("score") else ():
            if not isinstance(score, str):
                raise ConfigError(f"{where}.masks.score={shown(score)}: must be text in quotes")
            for kind in kinds:
                check_scores(f"{where}.masks", replace(method, score=score), str(kind))

    def _allocation_of(self, name: str, kind: str) -> str:
        """The allocation of a method's masks of a kind where a space does not name one."""
        if name == self.masks.method:
            return self.masks.allocation
        return PRUNERS[name].for_masks(kind).allocation or self.masks.allocation

    def _check_chain(self, where: str, space: Space, name: str, chains: Sequence[str]) -> None:
        """What a space may say of the chains of a method, one of `chains`."""
        method, keys = PRUNERS[name].method, space.keys
        if all(PRUNERS[each].method.survivors == "trained" for each in chains) and "masks.ap_fraction" in keys:
            raise ConfigError(
                f"{where}.masks.ap_fraction: is of levels that are rewound, and those of masks.method={name!r} go on "
                "from the weights that were pruned; remove it"
            )
        self._check_rewind(where, space, name)
        if not method.reads("ap_fraction"):
            return
        if "node" in space.choices_of("masks.kind", self.masks.kind) and space.ends_of("masks.ap_fraction", 0.0)[1]:
            raise ConfigError(
                f"{where}.masks.ap_fraction: removes single weights, and masks.kind may be 'node'; leave it out"
            )
        rate, share = (
            space.ends_of("masks.rate", method.rate)[0],
            space.ends_of("masks.ap_fraction", method.ap_fraction),
        )
        if share[1] >= rate:
            raise ConfigError(
                f"{where}.masks.ap_fraction: up to {share[1]:g} must be less than every masks.rate, from {rate:g} on; "
                "it is part of what a level removes"
            )
        activations = space.choices_of("model.activation", self.model.options.get("activation", "relu"))
        if share[1] and (others := [value for value in activations if value != "relu"]):
            key = "model.activation"
            raise ConfigError(
                f"{f'{where}.{key}' if key in keys else key}={others[0]!r}: masks.method={name!r} with "
                f"ap_fraction up to {share[1]:g} removes negative weights to keep rectified units active, and needs "
                "'relu'; use that alone, or ap_fraction = 0"
            )

    def _check_rewind(self, where: str, space: Space, name: str) -> None:
        """Refuse one rewind for all candidates that is none, or leaves nothing to train."""
        key, method = "masks.rewind_fraction", PRUNERS[name].method
        low, fraction = space.ends_of(key, method.rewind_fraction)
        # Where trainings are of several lengths, the longest.
        steps = int(space.ends_of("training.steps", self.training.steps)[1])
        if low != fraction or not fraction or not method.reads("rewind_fraction"):
            return
        step = replace(method, rewind_fraction=fraction).rewind_step(steps)
        is_own = key not in space.keys
        what = f"masks.method={name!r}: rewind_fraction={fraction!r}" if is_own else f"{where}.{key}={fraction!r}:"
        if step >= steps:
            raise ConfigError(
                f"{what} goes back to the end of the training ({steps} steps), after which nothing is left to train; "
                "lower it, or use masks.method = 'lr_rewind'"
            )
        if not step:
            raise ConfigError(
                f"{what} rounds to step 0 of a training of {steps} steps, which is initialisation; set {1 / steps:.3g} "
                f"or more{f' as {where}.{key}' if is_own else ''}, train for more steps, or say that it is 0"
            )

    def _check_allocation(self, where: str, allocation: str, kind: str) -> None:
        if allocation in ALLOCATIONS and kind not in ALLOCATIONS[allocation].kinds:
            is_fixed = "is" if kind == self.masks.kind else "may be"
            raise ConfigError(
                f"{where}.allocation={allocation!r}: divides {ALLOCATIONS[allocation].kinds[0]} masks only, and "
                f"masks.kind {is_fixed} {kind!r}"
            )


def _pattern_beside(name: str, pattern: str) -> str:
    """The pattern of weight masks that a method of this name makes beside a pattern that is said."""
    return pattern if name == DRAWN or pattern != "unstructured" else PRUNERS[name].method.pattern
