//! Clusters: what their blocks do together, and in which order signals are made, used and awaited.

use super::check::{Use, Verifier};
use super::fault::FaultKind;
use super::uniform::Agreement;
use crate::dtype::DType;
use crate::ids::{SharedId, SignalId, VarId};
use crate::kernel::{Expr, Kernel, MAX_CLUSTER, Mem};

/// How far a signal is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unknown,
    /// Made, but other blocks may not know yet.
    Made,
    /// Other blocks may send to it.
    Ready,
    Awaited,
}

/// How far the signals of a kernel are.
pub(super) struct Signals(Vec<Stage>);

impl Signals {
    pub fn new(kernel: &Kernel) -> Signals {
        Signals(vec![Stage::Unknown; kernel.signals.len()])
    }
}

impl Verifier<'_> {
    pub(super) fn cluster_header(&mut self) {
        let (cluster, signals) = (self.kernel.cluster, self.kernel.signals.len());
        match cluster {
            Some(n) if !(1..=MAX_CLUSTER).contains(&n) => {
                self.fault(FaultKind::Header(format!("clusters of {n} blocks, must be 1 to {MAX_CLUSTER}")));
            }
            None if signals > 0 => {
                self.fault(FaultKind::Header("signals in a kernel whose blocks form no clusters".into()));
            }
            Some(_) | None => {}
        }
    }

    fn at_top(&mut self, what: &'static str, top: bool) {
        if !top {
            self.fault(FaultKind::ConditionalCluster(what));
        }
        if self.kernel.cluster.is_none() {
            self.type_fault(format!("{what} in a kernel whose blocks form no clusters"));
        }
    }

    /// Moves a signal on, or says why it cannot.
    fn step(&mut self, signal: SignalId, from: Stage, to: Stage, why: &str) {
        let name = self.kernel.signal(signal).unwrap_or_default().to_string();
        match self.signals.0.get_mut(signal.index()) {
            None => self.type_fault(format!("no {signal}")),
            Some(stage) if *stage != from => self.fault(FaultKind::Signal(format!("`{name}` {why}"))),
            Some(stage) => *stage = to,
        }
    }

    pub(super) fn cluster_barrier(&mut self, top: bool) {
        self.at_top("cluster barrier", top);
        for stage in self.signals.0.iter_mut().filter(|s| **s == Stage::Made) {
            *stage = Stage::Ready;
        }
    }

    pub(super) fn expect_bytes(&mut self, signal: SignalId, bytes: &Expr, agreement: Agreement) {
        self.collective("making of a signal", agreement, Agreement::Block);
        self.typed(bytes, agreement, DType::I32, "bytes of a signal");
        if self.uniformity.of(bytes) > Agreement::Block {
            self.fault(FaultKind::Disagreement("bytes of a signal"));
        }
        self.step(signal, Stage::Unknown, Stage::Made, "is made twice");
    }

    pub(super) fn send(
        &mut self,
        (to, index): (SharedId, &Expr),
        (src, src_at): (VarId, &Expr),
        lanes: u32,
        (rank, signal): (&Expr, SignalId),
        agreement: Agreement,
    ) {
        self.index(index, agreement);
        self.typed(rank, agreement, DType::I32, "number of a block in its cluster");
        self.touch(Mem::Shared(to), Use::Write, Some((index, lanes)));
        match self.kernel.mem_dtype(Mem::Shared(to)) {
            Some(dtype @ (DType::F32 | DType::I32 | DType::U32)) => {
                self.width(dtype, lanes);
                self.registers(src, src_at, agreement, lanes, dtype);
            }
            other => self.type_fault(format!("{other:?} is sent, must be 32 bits")),
        }
        self.step(
            signal,
            Stage::Ready,
            Stage::Ready,
            "is sent to before a cluster barrier behind its making",
        );
    }

    pub(super) fn await_bytes(&mut self, signal: SignalId, top: bool) {
        self.at_top("wait for a signal", top);
        self.step(
            signal,
            Stage::Ready,
            Stage::Awaited,
            "is awaited without a cluster barrier behind its making",
        );
    }

    /// At the end of the kernel: a block that did not wait for what is sent to it may be gone when it arrives.
    pub(super) fn signals_end(&mut self) {
        let left = |(_, stage): &(usize, &Stage)| matches!(stage, Stage::Made | Stage::Ready);
        let left: Vec<usize> = self.signals.0.iter().enumerate().filter(left).map(|(i, _)| i).collect();
        for i in left {
            let name = self.kernel.signals[i].clone();
            self.fault(FaultKind::Signal(format!("`{name}` is never awaited")));
        }
    }
}
