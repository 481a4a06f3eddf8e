"""FedProx, FedAvg that drops stragglers, and FedDANE: exact weighted averages of the clients' models."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedprox.strategies.averaging import no_metrics, weighted_average


class FedProx(FedAvg):
    """w^{t+1} = sum n_k w_k / sum n_k over all clients of the cohort, partial work included (Li et al., alg. 2).

    The server step is FedAvg's; mu reaches the clients in each round's config as "proximal-mu". Sums are taken in
    float64 in the order of the plan, so that the result does not depend on which client finishes first.
    """

    drops_stragglers = False
    weighting = "examples"  # or "equal": a simple mean over the draws, each of client k with probability n_k / n

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the average of the models, and the metrics from `train_metrics_aggr_fn`."""
        is_first = server_round == 1  # clients answer in the same form in every round
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=is_first)
        if not valid:
            return None, None
        average = weighted_average(valid, self.weighted_by_key if self.weighting == "examples" else None)
        if self.train_metrics_aggr_fn is no_metrics:
            return average, None
        return average, self.train_metrics_aggr_fn([reply.content for reply in valid], self.weighted_by_key)


class FedAvgWithStragglerDrop(FedProx):
    """FedAvg as in the paper's comparison: stragglers are dropped, so their work is not computed at all."""

    drops_stragglers = True


class FedDane(FedProx):
    """FedDANE (Li et al. 2019; fig. 4 of the paper), which corrects local gradients towards the global one.

    Each round first asks a second cohort for its full gradients at w^t. With their n_k-weighted mean g_t, client k
    steps along grad F_k(w; B) + (g_t - grad F_k(w^t)) + mu (w - w^t).
    """

    corrects_gradients = True
