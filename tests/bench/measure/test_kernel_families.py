"""Kernel families, by the names that GPUs and CPUs really report."""

import pytest

from lib.bench.measure.kernel_families import cpu_family, cuda_family

CUDA_KERNELS = {
    "ampere_sgemm_32x128_tn": "gemm",
    "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x64x16_stage4": "gemm",
    "void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64_8x5_tn_align1>(Params)": "gemm",
    "nvjet_sm90_tst_128x64_64x8_2x1_v_bz_TNT": "gemm",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float>": "gemm",
    "void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false>": "gemv",
    "void internal::gemvx::kernel<int, int, float, float, float, float, false, true>": "gemv",
    "void gemvNSP_kernel<float, float, float, float, 1, 32, 4, 1024>": "gemv",
    "fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64>>": "attention",
    "_paged_attention_kernel": "attention",
    "void (anonymous namespace)::softmax_warp_forward<float, float, float, 8, false>": "softmax",
    "void at::native::cunn_SoftMaxForward<4, float, float>": "softmax",
    "void at::native::vectorized_layer_norm_kernel<float, float>": "normalisation",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float>>>": "normalisation",
    "void at::native::elementwise_kernel<128, 2, at::native::direct_copy_kernel_cuda>": "copy",
    "void at::native::index_elementwise_kernel<128, 4, gpu_index_kernel>": "copy",
    "void at::native::CatArrayBatchedCopy<float, unsigned int, 3, 64, 64>": "copy",
    "Memcpy HtoD (Pageable -> Device)": "copy",
    "void at::native::vectorized_gather_kernel<16, long>": "copy",
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>": "elementwise",
    "void at::native::unrolled_elementwise_kernel<at::native::CUDAFunctor_add<float>>": "elementwise",
    "void at::native::radixSortKVInPlace": "other",
}


CPU_OPS = {
    ("aten::mm", ((8, 4), (4, 3))): "gemm",
    ("aten::mm", ((1, 4), (4, 3))): "gemv",
    ("aten::mm", ((8, 4), (4, 1))): "gemv",
    ("aten::addmm", ((3,), (8, 4), (4, 3))): "gemm",
    ("aten::addmm", ((3,), (1, 4), (4, 3))): "gemv",
    ("aten::addmm", ((1, 3), (8, 4), (4, 3))): "gemm",
    ("aten::bmm", ((2, 1, 4), (2, 4, 9))): "gemv",
    ("aten::linear", ((1, 1, 4), (3, 4), ())): "gemv",
    ("aten::linear", ((5, 4), (3, 4), (3,))): "gemm",
    ("aten::mv", ((8, 4), (4,))): "gemv",
    ("aten::_scaled_dot_product_flash_attention_for_cpu", ()): "attention",
    ("aten::_softmax", ()): "softmax",
    ("aten::native_layer_norm", ()): "normalisation",
    ("aten::rsqrt", ()): "normalisation",
    ("aten::cat", ()): "copy",
    ("aten::index_put_", ()): "copy",
    ("aten::copy_", ()): "copy",
    ("aten::embedding", ()): "embedding",
    ("aten::mul_", ()): "elementwise",
    ("aten::gelu", ()): "elementwise",
    ("aten::topk", ()): "other",
    ("aten::expand", ()): "other",
    ("aten::select", ()): "other",
    ("aten::view", ()): "other",
}


@pytest.mark.parametrize("name", CUDA_KERNELS)
def test_cuda_kernels(name):
    assert cuda_family(name) == CUDA_KERNELS[name]


@pytest.mark.parametrize("op, shapes", CPU_OPS)
def test_cpu_operators(op, shapes):
    assert cpu_family(op, shapes) == CPU_OPS[op, shapes]
