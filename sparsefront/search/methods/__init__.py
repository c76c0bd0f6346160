"""The arms of a study: how each one comes to its candidates; one file and one registry line each."""

from sparsefront.search.methods.method import Best, Context, Method, Missing
from sparsefront.search.methods.registry import METHODS

__all__ = ["METHODS", "Best", "Context", "Method", "Missing"]
