//! Plans of one work, for tests of single kernels.

use std::collections::BTreeMap;
use weft_ir::dtype::DType;
use weft_ir::ids::{BufferId, DispatchId, KernelId};
use weft_ir::plan::{
    Body, Buffer, Dispatch, Entry, KernelSpec, Launch, Plan, Role, Schedule, ScheduleSource, Work,
};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;
use weft_passes::{memory_plan, schedule};

/// A work on buffers, in one bucket.
pub struct OneWork {
    /// The work.
    pub work: Work,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// Those of the work's reads and writes.
    pub on: [Vec<BufferId>; 2],
    /// Sizes of the bucket.
    pub bind: Bindings,
    /// Type of the plan.
    pub dtype: DType,
}

impl OneWork {
    /// The plan, with the schedule that is chosen for the work; `tweak` changes it.
    ///
    /// # Panics
    /// When it is not valid, or its text does not read back.
    pub fn plan(self, target: &'static Target, tweak: &dyn Fn(&mut Schedule)) -> Plan {
        let OneWork { work, buffers, on: [reads, writes], bind, dtype } = self;
        let (mut schedule, fallback) = schedule::choose(&work, &bind, target);
        tweak(&mut schedule);
        let (grid, threads) = schedule::launch_shape(&work, &schedule);
        let kernel = KernelSpec {
            name: format!("{}_test", work.name),
            work: 0,
            scratch: schedule::scratch(&work, &schedule),
            schedule,
            source: ScheduleSource::Estimated,
            grid,
            threads,
            programmatic: target.features.programmatic_launch,
            fallback,
        };
        let dispatch = Dispatch { work: 0, reads, writes, scope: "test".into() };
        let needs = |_: &Dispatch| kernel.scratch.as_ref();
        let arena = memory_plan::run(&buffers, std::slice::from_ref(&dispatch), &bind, &needs);
        let launches = vec![Launch { dispatch: DispatchId::new(0), after: vec![] }];
        let entry = Entry {
            name: "step".into(),
            role: Role::Decode,
            bind,
            body: 0,
            kernels: BTreeMap::from([(0, KernelId::new(0))]),
            arena: arena.placements,
            scratch: arena.scratch,
            arena_bytes: arena.bytes,
            unshared_bytes: arena.unshared_bytes,
        };
        let plan = Plan {
            target: target.name.into(),
            dtype,
            opt_level: 2,
            max_seq: bind.context,
            max_batch: bind.seqs,
            buffers,
            works: vec![work],
            kernels: vec![kernel],
            bodies: vec![Body { dispatches: vec![dispatch], launches }],
            entries: vec![entry],
            generation: None,
        };
        weft_ir::verify::plan::verify(&plan).unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(Plan::from_ron(&plan.to_ron().expect("RON")).expect("a plan"), plan);
        plan
    }
}
