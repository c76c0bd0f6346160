"""A study, checked and completed: the composition that a user calls."""

from sparsefront.study.masks import MaskStudy
from sparsefront.study.search import SearchStudy
from sparsefront.study.sections import Section
from sparsefront.study.study import Study, attributed, versions

__all__ = ["MaskStudy", "SearchStudy", "Section", "Study", "attributed", "versions"]
