"""The steps, by stage of the flow, and free of Airflow; a stage imports only what stands before it.

ingest > build_features > train > promote > score > deploy | monitor. Above them stand what asks every stage for work
(`pending_work`), what tells of a task that failed (`failure`) and what makes a model again (`reproduce`); below them,
in `common`, what every stage uses: the ledger, errors, energy.
"""
