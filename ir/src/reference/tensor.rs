//! Tensors of the reference: shared data and a layout.

use super::error::OpError;
use super::layout::{Layout, fill_rows};
use super::precision::Real;
use crate::dtype::DType;
use std::sync::Arc;

/// Elements of a tensor. Floats of all stored types are `R`; i64 is kept as i32.
#[derive(Clone, Debug, PartialEq)]
pub enum Data<R> {
    /// Floats.
    Real(Arc<Vec<R>>),
    /// Signed integers.
    Int(Arc<Vec<i32>>),
    /// Unsigned integers.
    U32(Arc<Vec<u32>>),
    /// Truth values.
    Bool(Arc<Vec<bool>>),
}

/// Kind of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Floats.
    Real,
    /// Signed integers.
    Int,
    /// Unsigned integers.
    U32,
    /// Truth values.
    Bool,
}

impl Kind {
    /// Kind in which elements of a stored type are kept.
    pub fn of(dtype: DType) -> Kind {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Kind::Real,
            DType::I64 | DType::I32 => Kind::Int,
            DType::U32 => Kind::U32,
            DType::Bool => Kind::Bool,
        }
    }
}

/// A tensor: data that clones and views share, and where its elements are in it.
#[derive(Clone, Debug)]
pub struct Tensor<R> {
    data: Data<R>,
    layout: Layout,
}

/// Evaluates an expression for the typed vector in a [`Data`], giving a [`Data`] of the same kind.
macro_rules! map_data {
    ($data:expr, $v:ident => $e:expr) => {
        match $data {
            Data::Real($v) => Data::Real(Arc::new($e)),
            Data::Int($v) => Data::Int(Arc::new($e)),
            Data::U32($v) => Data::U32(Arc::new($e)),
            Data::Bool($v) => Data::Bool(Arc::new($e)),
        }
    };
}
pub(super) use map_data;

impl<R> Data<R> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::Real(v) => v.len(),
            Data::Int(v) => v.len(),
            Data::U32(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<R: Real> Tensor<R> {
    /// A tensor of row-major data.
    ///
    /// # Errors
    /// When the data has another number of elements than the shape.
    pub fn new(data: Data<R>, shape: Vec<usize>) -> Result<Tensor<R>, OpError> {
        let wanted = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if wanted != Some(data.len()) {
            return Err(OpError::Shape(format!("{} elements do not fill {shape:?}", data.len())));
        }
        Ok(Tensor { data, layout: Layout::packed(shape) })
    }

    /// A tensor of row-major floats.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn real(values: Vec<R>, shape: Vec<usize>) -> Result<Tensor<R>, OpError> {
        Tensor::new(Data::Real(Arc::new(values)), shape)
    }

    /// A tensor of row-major integers.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn int(values: Vec<i32>, shape: Vec<usize>) -> Result<Tensor<R>, OpError> {
        Tensor::new(Data::Int(Arc::new(values)), shape)
    }

    /// Zeros (false) of a stored type.
    pub fn zeros(dtype: DType, shape: Vec<usize>) -> Tensor<R> {
        let n = shape.iter().product();
        let data = match Kind::of(dtype) {
            Kind::Real => Data::Real(Arc::new(vec![R::ZERO; n])),
            Kind::Int => Data::Int(Arc::new(vec![0; n])),
            Kind::U32 => Data::U32(Arc::new(vec![0; n])),
            Kind::Bool => Data::Bool(Arc::new(vec![false; n])),
        };
        Tensor { data, layout: Layout::packed(shape) }
    }

    /// Data and layout of a view; every element of the layout must be in the data.
    pub(super) fn view(data: Data<R>, layout: Layout) -> Tensor<R> {
        Tensor { data, layout }
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.layout.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the elements are in [`Tensor::data`].
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Data, shared with clones and views.
    pub fn data(&self) -> &Data<R> {
        &self.data
    }

    /// Kind of the elements.
    pub fn kind(&self) -> Kind {
        match self.data {
            Data::Real(_) => Kind::Real,
            Data::Int(_) => Kind::Int,
            Data::U32(_) => Kind::U32,
            Data::Bool(_) => Kind::Bool,
        }
    }

    /// The same elements in row-major order without gaps; a copy unless they already are.
    pub fn packed(&self) -> Tensor<R> {
        if self.layout.is_packed() {
            return self.clone();
        }
        let data = map_data!(&self.data, v => copied(v, &self.layout));
        Tensor { data, layout: Layout::packed(self.layout.shape.clone()) }
    }

    /// A packed copy that shares nothing.
    pub(super) fn compact(&self) -> Tensor<R> {
        let data = map_data!(&self.data, v => copied(v, &self.layout));
        Tensor { data, layout: Layout::packed(self.layout.shape.clone()) }
    }

    /// The same elements, in data that holds nothing else, in row-major order.
    pub(super) fn owned(self) -> Tensor<R> {
        if self.data.len() == self.len() && self.layout.is_packed() { self } else { self.compact() }
    }

    /// Data of an owned tensor.
    pub(super) fn into_data(self) -> Data<R> {
        self.owned().data
    }

    /// Data and layout, for changing in place.
    pub(super) fn parts_mut(&mut self) -> (&mut Data<R>, &Layout) {
        (&mut self.data, &self.layout)
    }

    /// Floats in row-major order.
    ///
    /// # Errors
    /// When the elements are not floats.
    pub fn to_reals(&self) -> Result<Vec<R>, OpError> {
        self.reals().map(|v| copied(v, &self.layout))
    }

    /// Signed integers in row-major order.
    ///
    /// # Errors
    /// When the elements are not signed integers.
    pub fn to_ints(&self) -> Result<Vec<i32>, OpError> {
        self.ints().map(|v| copied(v, &self.layout))
    }

    /// Truth values in row-major order.
    ///
    /// # Errors
    /// When the elements are not truth values.
    pub fn to_bools(&self) -> Result<Vec<bool>, OpError> {
        self.bools().map(|v| copied(v, &self.layout))
    }

    /// Unsigned integers in row-major order.
    ///
    /// # Errors
    /// When the elements are not unsigned integers.
    pub fn to_u32s(&self) -> Result<Vec<u32>, OpError> {
        self.u32s().map(|v| copied(v, &self.layout))
    }

    pub(super) fn reals(&self) -> Result<&[R], OpError> {
        match &self.data {
            Data::Real(v) => Ok(v),
            Data::Int(_) | Data::U32(_) | Data::Bool(_) => Err(self.wrong("floats")),
        }
    }

    pub(super) fn ints(&self) -> Result<&[i32], OpError> {
        match &self.data {
            Data::Int(v) => Ok(v),
            Data::Real(_) | Data::U32(_) | Data::Bool(_) => Err(self.wrong("signed integers")),
        }
    }

    pub(super) fn u32s(&self) -> Result<&[u32], OpError> {
        match &self.data {
            Data::U32(v) => Ok(v),
            Data::Real(_) | Data::Int(_) | Data::Bool(_) => Err(self.wrong("unsigned integers")),
        }
    }

    pub(super) fn bools(&self) -> Result<&[bool], OpError> {
        match &self.data {
            Data::Bool(v) => Ok(v),
            Data::Real(_) | Data::Int(_) | Data::U32(_) => Err(self.wrong("truth values")),
        }
    }

    fn wrong(&self, wanted: &str) -> OpError {
        OpError::Type(format!("expected {wanted}, got {:?} elements", self.kind()))
    }
}

/// Elements of a layout in row-major order.
pub(super) fn copied<T: Copy + Default + Send + Sync>(v: &[T], layout: &Layout) -> Vec<T> {
    if layout.is_packed() {
        return v[layout.offset..layout.offset + layout.len()].to_vec();
    }
    let mut out = vec![T::default(); layout.len()];
    fill_rows([layout], &mut out, |part, [run]| match run.step {
        1 => part.copy_from_slice(&v[run.start..run.start + part.len()]),
        0 => part.fill(v[run.start]),
        step => part.iter_mut().zip(v[run.start..].iter().step_by(step)).for_each(|(o, &x)| *o = x),
    });
    out
}
