"""The same model behind other servers, each written as a competent user of it would."""
