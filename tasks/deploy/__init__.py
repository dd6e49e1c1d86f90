"""Takes a `Release`; hands on a version that answers everyone online, or the reason why it does not.

Guarantees: what is true stands in `deployments`, and the gateway's route and the server follow it, so that a killed
step goes on where it was. A version whose answers differ from the batch's never serves; each stage waits for requests;
what goes wrong is reverted, and `watch` goes on looking. `experiment` compares two versions on real requests.
"""
