"""Every concept of autograd has its section in the tour, in this order, and tests that fail when it breaks."""

import ast
import re

import pytest

from tests.factory import ROOT

# The heading of the tour's section -> the tests that hold it, besides the section itself, which tests/test_docs.py runs.
CONCEPTS = {
    "Tensors: shape, dtype, device": [
        "test_variants.py::test_shapes_and_dtypes",
        "test_commands.py::test_a_run_shows_its_batch_once",
        "training/test_training.py::test_the_summary_names_every_tensor_and_component",
    ],
    "dtypes": [
        "test_variants.py::test_shapes_and_dtypes",
        "training/test_training.py::test_mixed_precision_keeps_parameters_and_gradients_in_fp32",
        "data/test_windows.py::test_a_batch_holds_what_the_robot_saw_felt_and_was_told",
    ],
    "Element-wise operations, matmul, batched matmul": [
        "test_layers.py::test_a_block_is_the_textbooks",
        "test_layers.py::test_the_query_trunk_is_two_attentions",
    ],
    "view, reshape, permute, transpose, squeeze, unsqueeze": [
        "vision/test_own_vision.py::test_a_change_in_one_cell_changes_its_own_token_most",
        "test_layers.py::test_a_block_is_the_textbooks",
    ],
    "cat, stack, split, chunk": [
        "test_layers.py::test_the_query_trunk_is_two_attentions",
        "data/test_windows.py::test_windows_never_cross_an_episodes_end",
    ],
    "Broadcasting": [
        "test_normalization.py::test_statistics_are_broadcast",
        "trunk/test_joint_trunk.py::test_masked_words_are_not_looked_at",
    ],
    "Devices": [
        "test_door.py::test_misfits_are_named_with_what_they_should_be",
        "test_gpu.py::test_a_tensor_on_another_device_is_named_with_both",
    ],
    "requires_grad, the graph, grad_fn": [
        "autograd/test_graph.py::test_every_node_is_counted_once",
        "autograd/test_graph.py::test_vision_language_and_state_join_and_the_head_hangs_on_them",
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
        "training/test_training.py::test_a_window_is_the_one_big_batch",
        "training/test_window.py::test_nothing_leaks_from_one_window_to_the_next",
        "test_variants.py::test_micro_batches_add_up_to_the_big_batch",
    ],
    "no_grad and inference_mode": [
        "test_variants.py::test_no_graph_when_acting",
        "test_commands.py::test_infer_says_what_act_does",
        "autograd/test_inference.py::test_the_same_actions_and_only_grad_mode_keeps_anything",
    ],
    "detach": [
        "test_policy.py::test_insulation_stops_the_heads_gradient_before_the_backbone",
        "test_policy.py::test_insulated_backbones_learn_from_their_own_head",
        "training/test_monitor.py::test_a_hundred_steps_keep_nothing",
    ],
    "Freezing": [
        "test_variants.py::test_frozen_parts_do_not_learn",
        "training/test_training.py::test_frozen_parts_stay_in_eval_mode_through_training_and_selection",
        "training/test_freezing.py::test_a_frozen_part_keeps_nothing_for_backward_and_is_not_computed_back_through",
        "training/test_freezing.py::test_a_step_with_a_frozen_part_takes_less_time",
    ],
    "In-place operations": [
        "autograd/test_rules.py::test_an_in_place_change_of_a_saved_tensor_is_caught",
        "autograd/test_rules.py::test_nothing_that_computes_changes_tensors_in_place",
        "autograd/test_rules.py::test_no_variant_changes_what_is_part_of_a_graph",
    ],
    "forward, loss, backward, step": [
        "test_variants.py::test_one_batch_can_be_overfitted",
        "test_commands.py::test_a_run_leaves_all_that_it_promises",
    ],
    "SGD, Adam, RMSprop, AdamW": ["training/test_training.py::test_the_optimizers_of_configs_reduce_the_loss"],
    "NumPy and torch": [
        "data/test_windows.py::test_arrays_reach_torch_without_another_copy_and_keep_their_dtype",
        "autograd/test_central_differences.py::test_every_part_matches_central_differences",
    ],
    "The Jacobian, and why not to build it": [
        "autograd/test_jacobian.py::test_both_ways_agree_with_central_differences",
        "autograd/test_jacobian.py::test_costs_are_measured",
    ],
    "Vector-Jacobian products": ["autograd/test_jacobian.py::test_a_product_with_a_vector_needs_no_matrix"],
    "Sensitivity": [
        "autograd/test_sensitivity.py::test_against_central_differences",
        "autograd/test_sensitivity.py::test_each_scene_is_begun_under_two_instructions",
        "test_gradients.py::test_a_trained_policy_looks_at_what_is_named_and_an_untrained_one_does_not",
    ],
    "Exploding and vanishing gradients": [
        "autograd/test_gradient_flow.py::test_a_tiny_weight_lets_the_gradient_behind_it_vanish",
        "autograd/test_gradient_flow.py::test_a_huge_weight_lets_the_gradient_behind_it_explode",
        "training/test_training.py::test_clipping_bounds_the_step",
        "training/test_guard.py::test_a_planted_nan_leaves_every_weight_and_is_named",
    ],
    "torch.func: vmap, grad, jacrev": [
        "autograd/test_per_sample.py::test_each_is_the_gradient_of_its_sample_alone",
        "autograd/test_per_sample.py::test_norms_mean_and_noise_scale_by_explicit_loops",
    ],
    "torch.compile": [
        "training/test_compilation.py::test_compiled_training_is_eager_training",
        "training/test_compilation.py::test_the_policy_that_was_trained_compiled_is_saved_whole",
        "training/test_compilation.py::test_cuda_graphs_are_for_cuda",
        "training/test_compilation.py::test_the_modes_on_a_gpu",
    ],
    "Mixed precision": [
        "test_variants.py::test_bf16_is_close_and_losses_stay_fp32",
        "training/test_training.py::test_precision_is_what_the_hardware_does",
    ],
    "GPU": ["test_gpu.py::test_the_main_path", "test_gpu.py::test_the_numbers_are_those_of_the_host"],
    "The graph is dynamic, and freed after backward": [
        "autograd/test_rules.py::test_a_graph_is_freed_after_backward_unless_kept",
        "autograd/test_graph.py::test_a_detached_context_cuts_the_head_off",
    ],
    "float64 here, float32 there": [
        "data/test_windows.py::test_arrays_reach_torch_without_another_copy_and_keep_their_dtype",
        "data/test_reader.py::test_round_trip",
    ],
    "The learning rate": [
        "training/test_training.py::test_an_sgd_step_is_weight_minus_rate_times_gradient",
        "training/test_training.py::test_warm_up_and_cosine",
    ],
    "The Jacobian as the best straight line": [
        "autograd/test_jacobian.py::test_as_a_linear_approximation_its_error_falls_with_the_square_of_the_step",
    ],
    "Local Jacobians along the chain": ["autograd/test_chain.py::test_local_jacobians_module_by_module_are_one_backward"],
    "exp and log": [
        "action/test_bins_head.py::test_logits_of_ten_thousand_are_no_trouble",
        "autograd/test_rules.py::test_losses_are_finite_at_extreme_activations",
    ],
    "float16 and its GradScaler": [
        "training/test_window.py::test_fp16_gradients_are_unscaled_before_anyone_looks",
        "training/test_guard.py::test_an_fp16_overflow_lowers_the_scale_and_is_no_failure",
        "test_gpu.py::test_each_precision_learns",
        "test_gpu.py::test_the_scale_is_taken_out_before_anyone_looks",
    ],
    "From 0-D to 4-D": ["test_variants.py::test_shapes_and_dtypes"],
}


def test_each_has_its_section_in_this_order():
    page = (ROOT / "docs" / "autograd.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == [f"{number}. {concept}" for number, concept in enumerate(CONCEPTS, 1)]
    sections = re.split(r"^## .*$", page, flags=re.MULTILINE)[1:]
    assert [concept for concept, section in zip(CONCEPTS, sections, strict=True) if "```python" not in section] == []


@pytest.mark.parametrize("concept", CONCEPTS)
def test_each_has_tests_of_its_own(concept):
    for holder in CONCEPTS[concept]:
        path, _, name = holder.partition("::")
        tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{holder} is gone"
