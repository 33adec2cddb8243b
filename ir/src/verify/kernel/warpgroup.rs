//! Products of four warps from shared memory.

use super::check::{Use, Verifier};
use super::uniform::Agreement;
use crate::dtype::DType;
use crate::ids::{SharedId, VarId};
use crate::kernel::{Expr, Mem, SWIZZLED, SWIZZLED_ROW};

/// Elements along k of a product.
const DEPTH: u32 = 16;

impl Verifier<'_> {
    pub(super) fn wgmma(
        &mut self,
        dtype: DType,
        (acc, columns): (VarId, u32),
        operands: [(SharedId, &Expr); 2],
        k: u32,
        agreement: Agreement,
    ) {
        self.collective("wgmma", agreement, Agreement::Block);
        if !dtype.is_half() {
            self.type_fault(format!("wgmma of {dtype}"));
        }
        if !(8..=256).contains(&columns) || !columns.is_multiple_of(8) {
            self.type_fault(format!("wgmma of {columns} columns, must be a multiple of 8 up to 256"));
        }
        if !k.is_multiple_of(DEPTH) || k >= SWIZZLED_ROW {
            self.type_fault(format!("wgmma from element {k} of a row, must be a multiple of {DEPTH} in it"));
        }
        if !self.kernel.threads.is_multiple_of(128) {
            self.type_fault(format!(
                "wgmma in blocks of {} threads, must be four warps each",
                self.kernel.threads
            ));
        }
        self.registers(acc, &Expr::int(0), agreement, columns / 2, DType::F32);
        for (shared, at) in operands {
            self.index(at, agreement);
            self.touch(Mem::Shared(shared), Use::Read, Some((at, SWIZZLED_ROW)));
            let Some(array) = self.kernel.shared_array(shared) else { continue };
            if array.dtype != dtype || array.align != SWIZZLED {
                let (name, align) = (&array.name, array.align);
                self.type_fault(format!(
                    "wgmma of {dtype} reads `{name}` of {}, aligned to {align} bytes, must be {SWIZZLED}",
                    array.dtype
                ));
            }
            if self.uniformity.of(at) > Agreement::Warp {
                self.fault(super::FaultKind::Disagreement("place of an operand of wgmma"));
            }
        }
    }

    pub(super) fn wgmma_wait(&mut self, acc: VarId, agreement: Agreement) {
        self.collective("wait for wgmma", agreement, Agreement::Block);
        self.registers(acc, &Expr::int(0), agreement, 1, DType::F32);
    }
}
