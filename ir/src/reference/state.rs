//! What goes into a step and comes out of it.

use super::error::{OpError, ReferenceError};
use super::precision::Real;
use super::tensor::{Data, Tensor};
use crate::graph::{Graph, Input, Op};
use crate::plan::{BufferKind, Plan};
use crate::shape::{Bindings, Sym};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Inputs of a step, one list for each [`Input`]; those that a graph does not use may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepInputs {
    /// [`Input::TokenIds`], `[tokens]`.
    pub token_ids: Vec<i32>,
    /// [`Input::Positions`], `[tokens]`.
    pub positions: Vec<i32>,
    /// [`Input::Sequences`], `[tokens]`.
    pub sequences: Vec<i32>,
    /// [`Input::Slots`], `[tokens]`.
    pub slots: Vec<i32>,
    /// [`Input::SlotBase`], `[seqs]`.
    pub slot_base: Vec<i32>,
    /// [`Input::OutputRows`], `[rows]`.
    pub output_rows: Vec<i32>,
    /// [`Input::Temperature`], `[rows]`.
    pub temperature: Vec<f32>,
    /// [`Input::TopK`], `[rows]`.
    pub top_k: Vec<i32>,
    /// [`Input::TopP`], `[rows]`.
    pub top_p: Vec<f32>,
    /// [`Input::MinP`], `[rows]`.
    pub min_p: Vec<f32>,
    /// [`Input::Seed`], `[rows]`.
    pub seed: Vec<u32>,
    /// [`Input::RepetitionPenalty`], `[rows]`.
    pub repetition_penalty: Vec<f32>,
    /// [`Input::PresencePenalty`], `[rows]`.
    pub presence_penalty: Vec<f32>,
    /// [`Input::PromptLengths`], `[rows]`.
    pub prompt_lengths: Vec<i32>,
    /// [`Input::Lengths`], `[seqs]`.
    pub lengths: Vec<i32>,
    /// [`Input::TokenTypes`], `[tokens]`.
    pub token_types: Vec<i32>,
    /// [`Input::Prompts`], `[tokens]`.
    pub prompts: Vec<i32>,
}

impl StepInputs {
    /// The tensor of an input.
    ///
    /// # Errors
    /// When its length is not the binding of its symbol.
    pub fn tensor<R: Real>(&self, input: Input, bind: &Bindings) -> Result<Tensor<R>, ReferenceError> {
        let real = |v: &Vec<f32>| Data::Real(Arc::new(R::from_f32s(v.clone())));
        let int = |v: &Vec<i32>| Data::Int(Arc::new(v.clone()));
        let (sym, data) = match input {
            Input::TokenIds => (Sym::Tokens, int(&self.token_ids)),
            Input::Positions => (Sym::Tokens, int(&self.positions)),
            Input::Sequences => (Sym::Tokens, int(&self.sequences)),
            Input::Slots => (Sym::Tokens, int(&self.slots)),
            Input::SlotBase => (Sym::Seqs, int(&self.slot_base)),
            Input::OutputRows => (Sym::Rows, int(&self.output_rows)),
            Input::Temperature => (Sym::Rows, real(&self.temperature)),
            Input::TopK => (Sym::Rows, int(&self.top_k)),
            Input::TopP => (Sym::Rows, real(&self.top_p)),
            Input::MinP => (Sym::Rows, real(&self.min_p)),
            Input::Seed => (Sym::Rows, Data::U32(Arc::new(self.seed.clone()))),
            Input::RepetitionPenalty => (Sym::Rows, real(&self.repetition_penalty)),
            Input::PresencePenalty => (Sym::Rows, real(&self.presence_penalty)),
            Input::PromptLengths => (Sym::Rows, int(&self.prompt_lengths)),
            Input::Lengths => (Sym::Seqs, int(&self.lengths)),
            Input::TokenTypes => (Sym::Tokens, int(&self.token_types)),
            Input::Prompts => (Sym::Tokens, int(&self.prompts)),
        };
        let (wanted, got) = (bind.get(sym), data.len());
        Tensor::new(data, vec![wanted]).map_err(|_| ReferenceError::input(input.name(), sym, wanted, got))
    }
}

/// States between steps.
#[derive(Clone, Debug, Default)]
pub struct States<R> {
    tensors: BTreeMap<String, Tensor<R>>,
}

impl<R: Real> States<R> {
    /// No states.
    pub fn new() -> States<R> {
        States { tensors: BTreeMap::new() }
    }

    /// The states of a graph, all zeros, under bindings (which say how many slots there are).
    pub fn zeros(graph: &Graph, bind: &Bindings) -> States<R> {
        let mut states = States::new();
        for node in &graph.nodes {
            if let Op::State { name, ty } = &node.op {
                states.put(name, Tensor::zeros(ty.dtype(), bind.shape(&ty.shape)));
            }
        }
        states
    }

    /// The states of a plan, all zeros, under bindings.
    pub fn zeros_of_plan(plan: &Plan, bind: &Bindings) -> States<R> {
        let mut states = States::new();
        for buffer in &plan.buffers {
            if let BufferKind::State(name) = &buffer.kind {
                states.put(name, Tensor::zeros(buffer.dtype, bind.shape(&buffer.shape)));
            }
        }
        states
    }

    /// A state.
    pub fn get(&self, name: &str) -> Option<&Tensor<R>> {
        self.tensors.get(name)
    }

    /// Sets a state. A step changes it in place when nothing else shares its data.
    pub fn put(&mut self, name: &str, value: Tensor<R>) {
        match self.tensors.get_mut(name) {
            Some(old) => *old = value,
            None => {
                self.tensors.insert(name.to_string(), value);
            }
        }
    }

    /// Names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Takes a state out.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor<R>, OpError> {
        let fault = |why: String| OpError::State { name: name.to_string(), why };
        match self.tensors.get(name) {
            None => Err(fault("it is missing".into())),
            Some(t) if t.shape() != shape => {
                Err(fault(format!("it has shape {:?}, expected {shape:?}", t.shape())))
            }
            Some(_) => self.tensors.remove(name).ok_or_else(|| fault("it is missing".into())),
        }
    }
}

/// Results of a step.
#[derive(Clone, Debug)]
pub struct Outputs<R> {
    values: Vec<(String, Tensor<R>)>,
}

impl<R: Real> Outputs<R> {
    pub(super) fn new(values: Vec<(String, Tensor<R>)>) -> Outputs<R> {
        Outputs { values }
    }

    /// The output of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor<R>> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Names and values, in the order in which they are declared.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<R>)> {
        self.values.iter().map(|(n, v)| (n.as_str(), v))
    }
}
