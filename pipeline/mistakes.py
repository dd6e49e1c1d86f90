"""Which errors a second attempt would only repeat: bad data and broken code, not trouble of the outside world.

Libraries' errors go by name, so that judging one imports nothing.
"""

# Errors of the world, not of the data or the code: the same call may well succeed later. Before all else, because some
# of them are ValueErrors too.
INFRASTRUCTURE = (
    "psycopg2.OperationalError",
    "psycopg2.InterfaceError",
    "botocore.exceptions.",
    "urllib3.exceptions.",
    "requests.exceptions.",
    "mlflow.exceptions.",
    "_duckdb.InvalidInputException",  # a file that is damaged: it is fetched again
    "duckdb.InvalidInputException",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
)
# Bad data (`BadData` is a ValueError) and broken code.
MISTAKES = (
    ValueError,
    TypeError,
    LookupError,  # of which KeyError and IndexError are
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    SyntaxError,
    NotImplementedError,
    RecursionError,
)
# What a database or an engine says of a statement or of its values: constraints, types, what is not there.
REFUSED_STATEMENTS = (
    *(
        f"{library}.{kind}"
        for library in ("psycopg2", "duckdb", "_duckdb")
        for kind in ("ProgrammingError", "DataError", "IntegrityError", "NotSupportedError")
    ),
    "pyspark.errors.exceptions.base.AnalysisException",
    "pyspark.errors.exceptions.base.ParseException",
)
DAMAGED = ("adapters.errors.Corrupt",)  # it was read again before this was said


def list_kinds(error: BaseException) -> list[str]:
    """The names of an error's class and of what that inherits from, its own first."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]


def is_mistake(error: BaseException) -> bool:
    """Whether trying again would give the same."""
    kinds = list_kinds(error)
    if any(kind.startswith(INFRASTRUCTURE) for kind in kinds):
        return False
    return isinstance(error, MISTAKES) or any(kind in (*REFUSED_STATEMENTS, *DAMAGED) for kind in kinds)
