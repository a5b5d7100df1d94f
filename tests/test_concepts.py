"""Every concept of autograd has a section in docs/autograd.md, in this order, and tests that fail where it is broken."""

import ast
import re

from tests.factory import ROOT

# Heading of the section -> tests of the concept, besides the section's own code, which tests/test_docs.py runs.
CONCEPTS = {
    "Tensors: shape, dtype, device": [
        "test_variants.py::test_shapes_and_dtypes",
        "test_commands.py::test_a_run_shows_its_batch_once",
        "training/test_policy_module.py::test_the_summary_names_every_tensor_and_component",
    ],
    "dtypes": [
        "test_variants.py::test_shapes_and_dtypes",
        "training/test_step.py::test_a_window_is_the_one_large_batch",
        "data/test_chunks.py::test_a_batch_holds_images_states_and_instructions_of_its_frames",
    ],
    "Element-wise operations, matmul, batched matmul": [
        "utils/test_layers.py::test_a_block_is_pre_norm_attention_and_an_mlp",
        "utils/test_layers.py::test_the_query_trunk_is_two_attentions",
    ],
    "view, reshape, permute, transpose, squeeze, unsqueeze": [
        "vision/test_own_vision.py::test_a_change_in_one_cell_changes_its_own_token_most",
        "utils/test_layers.py::test_a_block_is_pre_norm_attention_and_an_mlp",
    ],
    "cat, stack, split, chunk": [
        "utils/test_layers.py::test_the_query_trunk_is_two_attentions",
        "data/test_chunks.py::test_chunks_never_cross_an_episodes_end",
    ],
    "Broadcasting": [
        "test_normalization.py::test_statistics_are_broadcast",
        "trunk/test_joint_trunk.py::test_masked_words_have_no_effect",
    ],
    "Devices": [
        "test_types.py::test_a_wrong_tensor_is_named_with_what_it_should_be",
        "test_gpu.py::test_a_tensor_on_another_device_is_named_with_both",
    ],
    "requires_grad, the graph, grad_fn": [
        "autograd/test_graph.py::test_every_node_is_counted_once",
        "autograd/test_graph.py::test_edges_lead_from_the_encoders_through_the_trunk_to_the_heads_and_the_loss",
    ],
    "backward, .grad, the chain rule": [
        "autograd/test_central_differences.py::test_every_part_matches_central_differences",
        "autograd/test_central_differences.py::test_the_whole_policy_matches_central_differences",
        "autograd/test_central_differences.py::test_gradcheck_of_small_modules",
    ],
    "backward needs a scalar, or a vector": [
        "autograd/test_rules.py::test_backward_of_a_vector_needs_a_vector",
        "autograd/test_jacobian.py::test_a_product_with_a_vector_needs_no_matrix",
    ],
    "Accumulating and zeroing": [
        "training/test_step.py::test_a_window_is_the_one_large_batch",
        "training/test_step.py::test_nothing_leaks_from_one_window_to_the_next",
        "test_variants.py::test_gradients_of_micro_batches_add_up_to_the_batchs",
    ],
    "no_grad and inference_mode": [
        "test_variants.py::test_acting_builds_no_graph",
        "test_commands.py::test_infer_prints_what_act_returns",
        "autograd/test_inference.py::test_actions_are_equal_and_only_grad_mode_saves_tensors",
    ],
    "detach": [
        "test_policy.py::test_insulation_stops_the_heads_gradient_before_the_backbone",
        "test_policy.py::test_an_insulated_backbone_is_trained_by_the_second_head",
        "training/test_monitor.py::test_no_step_keeps_anything",
    ],
    "Freezing": [
        "test_variants.py::test_frozen_parts_are_not_trained",
        "finetuning/test_freezing.py::test_frozen_parts_stay_in_eval_mode_through_training_and_selection",
        "finetuning/test_freezing.py::test_a_frozen_part_keeps_nothing_for_backward_and_is_not_computed_back_through",
    ],
    "In-place operations": [
        "autograd/test_rules.py::test_an_in_place_change_of_a_saved_tensor_is_caught",
        "autograd/test_rules.py::test_no_part_changes_tensors_in_place",
        "autograd/test_rules.py::test_no_variant_changes_a_tensor_of_the_graph",
    ],
    "forward, loss, backward, step": [
        "test_variants.py::test_it_overfits_one_batch",
        "test_commands.py::test_a_run_leaves_all_that_it_promises",
    ],
    "SGD, Adam, RMSprop, AdamW": ["training/test_step.py::test_the_optimizers_of_configs_reduce_the_loss"],
    "NumPy and torch": [
        "data/test_chunks.py::test_arrays_reach_torch_without_another_copy_and_keep_their_dtype",
        "autograd/test_central_differences.py::test_every_part_matches_central_differences",
    ],
    "The Jacobian, and why not to build it": [
        "autograd/test_jacobian.py::test_both_ways_agree_with_central_differences",
        "autograd/test_jacobian.py::test_costs_are_measured",
    ],
    "Vector-Jacobian products": ["autograd/test_jacobian.py::test_a_product_with_a_vector_needs_no_matrix"],
    "Saliency": [
        "autograd/test_saliency.py::test_sensitivity_matches_central_differences",
        "autograd/test_saliency.py::test_each_scene_of_an_environment_comes_with_two_instructions",
        "test_gradients.py::test_a_trained_policy_depends_on_the_named_object_and_an_untrained_one_does_not",
    ],
    "Exploding and vanishing gradients": [
        "autograd/test_gradient_flow.py::test_behind_a_tiny_weight_the_gradient_vanishes",
        "autograd/test_gradient_flow.py::test_behind_a_huge_weight_the_gradient_explodes",
        "training/test_step.py::test_clipping_bounds_the_step",
        "training/test_step.py::test_a_planted_nan_leaves_every_weight_and_is_named",
    ],
    "torch.func: vmap, grad, jacrev": [
        "autograd/test_per_sample.py::test_each_gradient_is_that_of_its_sample_alone",
        "autograd/test_per_sample.py::test_norms_mean_and_noise_scale_by_explicit_loops",
    ],
    "torch.compile": [
        "training/test_trainer.py::test_compiled_training_is_eager_training",
        "training/test_trainer.py::test_every_variant_is_compiled",
        "training/test_trainer.py::test_cuda_graphs_are_for_cuda",
        "training/test_trainer.py::test_the_modes_on_a_gpu",
    ],
    "Mixed precision": [
        "test_variants.py::test_bf16_is_close_and_losses_are_fp32",
        "training/test_trainer.py::test_precision_is_what_the_hardware_has",
    ],
    "GPU": ["test_gpu.py::test_the_main_path", "test_gpu.py::test_the_numbers_are_those_of_the_host"],
    "The graph is dynamic, and freed after backward": [
        "autograd/test_rules.py::test_a_graph_is_freed_after_backward_unless_kept",
        "autograd/test_graph.py::test_a_detached_context_has_no_edge_to_the_head",
    ],
    "float64 in NumPy, float32 in torch": [
        "data/test_chunks.py::test_arrays_reach_torch_without_another_copy_and_keep_their_dtype",
        "data/test_reader.py::test_round_trip",
    ],
    "The learning rate": [
        "training/test_step.py::test_each_component_learns_at_its_own_rate",
        "training/test_step.py::test_warm_up_and_cosine",
    ],
    "The Jacobian as a linear approximation": [
        "autograd/test_jacobian.py::test_as_a_linear_approximation_its_error_falls_with_the_square_of_the_step",
    ],
    "Local Jacobians along the chain": [
        "autograd/test_chain_rule.py::test_the_product_of_all_modules_jacobians_is_what_backward_gives"
    ],
    "exp and log": [
        "action/test_bins_head.py::test_logits_of_ten_thousand_do_not_overflow",
        "autograd/test_rules.py::test_losses_are_finite_at_extreme_activations",
    ],
    "float16 and its GradScaler": [
        "training/test_step.py::test_fp16_gradients_are_unscaled_before_they_are_measured_and_clipped",
        "training/test_step.py::test_an_fp16_overflow_lowers_the_scale_and_is_no_failure",
        "test_gpu.py::test_each_precision_trains",
        "test_gpu.py::test_the_scale_is_taken_out_of_the_gradients",
    ],
    "From 0-D to 4-D": ["test_variants.py::test_shapes_and_dtypes"],
}


def test_each_concept_has_a_section_with_code():
    page = (ROOT / "docs" / "autograd.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == [f"{number}. {concept}" for number, concept in enumerate(CONCEPTS, 1)]
    sections = re.split(r"^## .*$", page, flags=re.MULTILINE)[1:]
    assert [concept for concept, section in zip(CONCEPTS, sections, strict=True) if "```python" not in section] == []


def test_each_concept_has_tests():
    missing = []
    for path, _, name in (test.partition("::") for tests in CONCEPTS.values() for test in tests):
        tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8")) if (ROOT / "tests" / path).is_file() else None
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} if tree else set()
        missing += [] if name in names else [f"{path}::{name}"]
    assert missing == []
