//! Every metric with its help, in Prometheus' text format.

use prometheus::{
    Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder, core::Collector,
};

/// The metrics of one daemon.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.known(IntGauge::new(name, help))
    }

    /// An instant, in seconds since 1970; the name says so.
    pub fn timestamp(&self, name: &str, help: &str) -> Gauge {
        self.known(Gauge::new(name, help))
    }

    /// A length of time, in seconds; the name says so.
    pub fn seconds(&self, name: &str, help: &str) -> Gauge {
        self.known(Gauge::new(name, help))
    }

    /// Counts, by the values of one label.
    pub fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.known(IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    /// A count; its name ends in `_total`.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.known(IntCounter::new(name, help))
    }

    /// All metrics as text.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Registers what was made. Names are constants, so a bad or doubled one shows in every test.
    fn known<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let metric = made.unwrap_or_else(|error| panic!("a metric's definition is wrong: {error}"));
        if let Err(error) = self.registry.register(Box::new(metric.clone())) {
            panic!("a metric is defined twice: {error}");
        }
        metric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_read_as_prometheus_text() {
        let metrics = Metrics::default();
        metrics.gauge("pgcm_pgbouncer_paused", "Whether clients are held.").set(1);
        let published = metrics.counters("pgcm_primary_publish_total", "Looks.", "result");
        published.with_label_values(&["written"]).inc();
        let text = metrics.text();
        assert!(
            text.contains("# TYPE pgcm_pgbouncer_paused gauge\npgcm_pgbouncer_paused 1"),
            "{text}"
        );
        assert!(text.contains("pgcm_primary_publish_total{result=\"written\"} 1"), "{text}");
    }
}
