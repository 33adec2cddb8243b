//! Every family that llama.cpp's converter writes and Weft builds: its GGUF file gives what its Hugging Face folder
//! gives, and the golden where there is one.

mod compare;
mod convert;
mod goldens;
mod scaling;
mod synthetic;
mod variants;
