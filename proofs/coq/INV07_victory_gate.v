(** INV-7 victory-gate: a comparison without a root is Student's one-sided t-test of three runs, at every level up to 1/2;
    the closed form of its distribution function has Student's density; and at levels up to 1/20 a gate that is met has
    every run below the target. *)

Require Import Bool Reals Lra Lia QArith Qreals.
From Karat Require Import Carrier Constants.

Section Formulas.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition lead (a b c target : K) : K := of_Z 3 * target - (a + b + c).

Definition scatter (a b c : K) : K := (a - b) * (a - b) + (b - c) * (b - c) + (c - a) * (c - a).

Definition lower_tail (t scale : K) : K := (one + t * scale) * (one / of_Z 2).

Definition significance (ahead spread alpha : K) : K :=
  let doubt := one - of_Z 2 * alpha in
  of_Z 4 * alpha * (one - alpha) * ahead * absolute ahead - doubt * doubt * spread.

Definition differ (x y : K) : bool := negb ((x <=? y) && (y <=? x)).

Definition gate_margin (a b c target alpha : K) : K :=
  let spread := scatter a b c in
  let distance := significance (lead a b c target) spread alpha in
  if ltb zero spread && differ distance zero then distance else of_Z (-1).
End Formulas.

Local Open Scope R_scope.

(** The statistic of the test as Student defines it: sample mean, sample variance, standard error. *)
Definition mean (a b c : R) : R := (a + b + c) / 3.
Definition variance (a b c : R) : R := ((a - mean a b c) ^ 2 + (b - mean a b c) ^ 2 + (c - mean a b c) ^ 2) / 2.
Definition statistic (a b c target : R) : R := (mean a b c - target) / sqrt (variance a b c / 3).

(** P(T <= t) with two degrees of freedom, as the running formula has it. *)
Definition student (t : R) : R := lower_tail (K := on_R) t (/ sqrt (2 + t ^ 2)).

Theorem lead_is (a b c target : R) : lead (K := on_R) a b c target = 3 * (target - mean a b c).
Proof. unfold lead, mean. simpl. lra. Qed.

Theorem scatter_is (a b c : R) : scatter (K := on_R) a b c = 6 * variance a b c.
Proof. unfold scatter, variance, mean. simpl. lra. Qed.

Lemma significance_is (ahead spread alpha : R) :
  significance (K := on_R) ahead spread alpha =
  4 * alpha * (1 - alpha) * ahead * Rabs ahead - (1 - 2 * alpha) * (1 - 2 * alpha) * spread.
Proof. unfold significance. rewrite absolute_Rabs. reflexivity. Qed.

Lemma student_is (t : R) : student t = (1 + t * / sqrt (2 + t ^ 2)) / 2.
Proof. unfold student, lower_tail, one. simpl. lra. Qed.

Lemma root_squared (t : R) : sqrt (2 + t ^ 2) * sqrt (2 + t ^ 2) = 2 + t ^ 2.
Proof. apply sqrt_sqrt. nra. Qed.

Lemma root_positive (t : R) : 0 < sqrt (2 + t ^ 2).
Proof. apply sqrt_lt_R0. nra. Qed.

Lemma root_above (t : R) : Rabs t < sqrt (2 + t ^ 2).
Proof.
  pose proof (root_squared t). pose proof (root_positive t). pose proof (Rabs_pos t).
  assert (Rabs t * Rabs t = t ^ 2) by (rewrite <- Rabs_mult, Rabs_right; nra). nra.
Qed.

(** The derivative of the closed form at t is (2 + t^2)^(-3/2), the density of Student's t with two degrees of freedom. *)
Theorem student_density (t : R) : derivable_pt_lim student t (/ sqrt (2 + t ^ 2) ^ 3).
Proof.
  pose proof (root_positive t) as P. pose proof (root_squared t) as S.
  set (w := fun x => sqrt (2 + x ^ 2)).
  assert (D : derivable_pt_lim w t (t / sqrt (2 + t ^ 2))).
  { replace (t / sqrt (2 + t ^ 2)) with (/ (2 * sqrt (2 + t ^ 2)) * (0 + INR 2 * t ^ Nat.pred 2))
      by (simpl; field; simpl in P; lra).
    apply (derivable_pt_lim_comp (fun x => 2 + x ^ 2) sqrt).
    - apply (derivable_pt_lim_plus (fun _ => 2) (fun x => x ^ 2));
        [apply derivable_pt_lim_const | apply derivable_pt_lim_pow].
    - apply derivable_pt_lim_sqrt. nra. }
  assert (Q : derivable_pt_lim (fun x => x / w x) t ((1 * w t - t / sqrt (2 + t ^ 2) * t) / Rsqr (w t))).
  { apply (derivable_pt_lim_div (fun x => x) w); [apply derivable_pt_lim_id | exact D | unfold w; lra]. }
  apply (derivable_pt_lim_ext (fun x => / 2 + / 2 * (x / w x))).
  { intro x. rewrite student_is. unfold w, Rdiv. lra. }
  replace (/ sqrt (2 + t ^ 2) ^ 3) with (0 + / 2 * ((1 * w t - t / sqrt (2 + t ^ 2) * t) / Rsqr (w t))).
  - apply (derivable_pt_lim_plus (fun _ => / 2) (fun x => / 2 * (x / w x))); [apply derivable_pt_lim_const|].
    apply (derivable_pt_lim_scal (fun x => x / w x)). exact Q.
  - unfold w, Rsqr. set (r := sqrt (2 + t ^ 2)) in *.
    assert (E : r - t / r * t = 2 / r) by (apply Rmult_eq_reg_r with r; [field_simplify; [nra | lra | lra] | lra]).
    replace (1 * r - t / r * t) with (2 / r) by lra. field. lra.
Qed.

(** It rises strictly. *)
Theorem student_increasing (s t : R) : s < t -> student s < student t.
Proof.
  intro H.
  apply (derive_increasing_interv s t student (fun x => exist _ _ (student_density x)) H); try lra.
  intros x _. change (0 < / sqrt (2 + x ^ 2) ^ 3). apply Rinv_0_lt_compat, pow_lt, root_positive.
Qed.

Lemma student_increasing_satisfiable : exists s t : R, s < t.
Proof. exists (-7), 3. lra. Qed.

(** Symmetric about 0. *)
Theorem student_symmetric (t : R) : student (- t) = 1 - student t.
Proof. rewrite !student_is. replace ((- t) ^ 2) with (t ^ 2) by lra. lra. Qed.

(** Strictly between 0 and 1. *)
Theorem student_range (t : R) : 0 < student t < 1.
Proof.
  rewrite student_is. pose proof (root_positive t) as P. pose proof (root_above t) as A.
  pose proof (Rle_abs t). pose proof (Rle_abs (- t)) as B. rewrite Rabs_Ropp in B.
  assert (E : t * / sqrt (2 + t ^ 2) * sqrt (2 + t ^ 2) = t) by (field; lra).
  split; nra.
Qed.

(** What is left above t is less than 1 / (2 t^2): it tends to 1, and by symmetry to 0 on the other side. *)
Theorem student_tail (t : R) : 0 < t -> 1 - student t < / (2 * t ^ 2).
Proof.
  intro H. rewrite student_is. pose proof (root_positive t) as P. pose proof (root_squared t) as S.
  pose proof (root_above t) as A. rewrite Rabs_right in A by lra. set (r := sqrt (2 + t ^ 2)) in *.
  replace (1 - (1 + t * / r) / 2) with ((r - t) / (2 * r)) by (field; lra).
  replace (r - t) with ((r * r - t ^ 2) / (r + t)) by (field; lra). rewrite S.
  replace (2 + t ^ 2 - t ^ 2) with 2 by ring.
  replace (2 / (r + t) / (2 * r)) with (/ ((r + t) * r)) by (field; lra).
  apply Rinv_lt_contravar; [apply Rmult_lt_0_compat|]; nra.
Qed.

Lemma student_tail_satisfiable : exists t : R, 0 < t.
Proof. exists 10. lra. Qed.

(** The test without its root. *)
Lemma student_below (t alpha : R) : alpha <= 1 / 2 ->
  (student t < alpha <-> t < 0 /\ (1 - 2 * alpha) ^ 2 * 2 < 4 * alpha * (1 - alpha) * t ^ 2).
Proof.
  intro H. rewrite student_is. pose proof (root_positive t) as P. pose proof (root_squared t) as S.
  set (r := sqrt (2 + t ^ 2)) in *.
  assert (E : t * / r * r = t) by (field; lra).
  assert (I : (1 + t * / r) / 2 < alpha <-> t < - ((1 - 2 * alpha) * r)) by (split; intro; nra).
  rewrite I. set (d := 1 - 2 * alpha) in *.
  replace (4 * alpha * (1 - alpha)) with (1 - d ^ 2) by (unfold d; ring).
  assert (0 <= d) by (unfold d; lra). clear I E. clearbody r d.
  assert (J : d ^ 2 * 2 < (1 - d ^ 2) * t ^ 2 <-> (d * r) * (d * r) < t * t)
    by (replace ((d * r) * (d * r)) with (d ^ 2 * (r * r)) by ring; rewrite S; split; intro; lra).
  rewrite J. assert (0 <= d * r) by (apply Rmult_le_pos; lra). set (e := d * r) in *. clearbody e. split.
  - intro T. split; [lra | nra].
  - intros [T U]. nra.
Qed.

Lemma statistic_squared (a b c target : R) : 0 < scatter (K := on_R) a b c ->
  (statistic a b c target) ^ 2 * scatter (K := on_R) a b c = 2 * lead (K := on_R) a b c target ^ 2 /\
  (statistic a b c target < 0 <-> 0 < lead (K := on_R) a b c target).
Proof.
  rewrite scatter_is, lead_is. intro H. unfold statistic.
  assert (P : 0 < sqrt (variance a b c / 3)) by (apply sqrt_lt_R0; lra).
  assert (S : sqrt (variance a b c / 3) * sqrt (variance a b c / 3) = variance a b c / 3) by (apply sqrt_sqrt; lra).
  set (s := sqrt (variance a b c / 3)) in *. replace (variance a b c) with (3 * (s * s)) by lra. split.
  - field. lra.
  - assert (E : (mean a b c - target) / s * s = mean a b c - target) by (field; lra). split; intro; nra.
Qed.

(** Of three runs that differ: the significance is positive exactly where Student's test gives p < alpha. *)
Theorem significance_is_the_t_test (a b c target alpha : R) : 0 <= alpha <= 1 / 2 -> 0 < variance a b c ->
  (0 < significance (K := on_R) (lead (K := on_R) a b c target) (scatter (K := on_R) a b c) alpha <->
   student (statistic a b c target) < alpha).
Proof.
  intros H V. assert (S : 0 < scatter (K := on_R) a b c) by (rewrite scatter_is; lra).
  rewrite (student_below _ alpha) by lra. destruct (statistic_squared a b c target S) as [E L]. rewrite L.
  rewrite significance_is. clear L V.
  set (l := lead (K := on_R) a b c target) in *. set (s := scatter (K := on_R) a b c) in *.
  set (t := statistic a b c target) in *. clearbody l s t. simpl in l, s.
  set (d := (1 - 2 * alpha)). replace (4 * alpha * (1 - alpha)) with (1 - d ^ 2) by (unfold d; ring).
  assert (0 <= d <= 1) by (unfold d; lra). clearbody d. clear H alpha.
  assert (0 <= 1 - d ^ 2) by nra. set (g := 1 - d ^ 2) in *. clearbody g. split.
  - intro I. destruct (Rlt_le_dec 0 l) as [P|N].
    + split; [exact P|]. rewrite Rabs_right in I by lra. apply Rmult_lt_reg_r with s; [exact S|]. nra.
    + exfalso. assert (l * Rabs l <= 0) by (pose proof (Rabs_pos l); nra).
      assert (g * (l * Rabs l) <= 0) by nra. assert (0 <= d * d * s) by nra. nra.
  - intros [P I]. rewrite Rabs_right by lra. apply (Rmult_lt_compat_r s) in I; [|exact S]. nra.
Qed.

Lemma significance_is_the_t_test_satisfiable : exists a b c target alpha : R, 0 <= alpha <= 1 / 2 /\ 0 < variance a b c.
Proof. exists 1, 2, 3, 4, (1 / 100). unfold variance, mean. lra. Qed.

Lemma chosen (spread distance : R) :
  0 <= (if ltb (K := on_R) zero spread && differ (K := on_R) distance zero then distance else -1) <->
  0 < spread /\ 0 < distance.
Proof.
  unfold differ, zero, ltb. simpl. generalize (Rleb_spec spread 0) (Rleb_spec distance 0) (Rleb_spec 0 distance).
  destruct (Rleb spread 0), (Rleb distance 0), (Rleb 0 distance); simpl; intros; split; intro; lra.
Qed.

Lemma gate_met (a b c target alpha : R) :
  0 <= gate_margin (K := on_R) a b c target alpha <->
  0 < variance a b c /\
  0 < significance (K := on_R) (lead (K := on_R) a b c target) (scatter (K := on_R) a b c) alpha.
Proof.
  pose proof (scatter_is a b c : _ = _ :> R) as E.
  assert (V : 0 < scatter (K := on_R) a b c <-> 0 < variance a b c) by (split; lra).
  rewrite <- V. apply chosen.
Qed.

(** The gate is met exactly where the three runs differ and Student's one-sided test gives p < alpha. *)
Theorem gate_is_the_t_test (a b c target alpha : R) : 0 <= alpha <= 1 / 2 ->
  (0 <= gate_margin (K := on_R) a b c target alpha <->
   0 < variance a b c /\ student (statistic a b c target) < alpha).
Proof.
  intro H. rewrite gate_met. split; intros [V S]; split; try exact V; apply significance_is_the_t_test; assumption.
Qed.

Lemma gate_is_the_t_test_satisfiable : exists a b c target alpha : R, 0 <= alpha <= 1 / 2.
Proof. exists 1, 2, 3, 4, (1 / 100). lra. Qed.

Lemma run_below (a b c target alpha : R) : 0 <= alpha * (1 - alpha) <= / 12 ->
  0 <= gate_margin (K := on_R) a b c target alpha -> a < target.
Proof.
  intros H G. apply gate_met in G. destruct G as [V S]. rewrite scatter_is, lead_is, significance_is in S.
  unfold variance in *. set (m := mean a b c) in *.
  assert (C : c = 3 * m - a - b) by (unfold m, mean; lra). clearbody m. subst c.
  set (u := 4 * (alpha * (1 - alpha))). assert (0 <= u <= / 3) by (unfold u; lra).
  replace (4 * alpha * (1 - alpha)) with u in S by (unfold u; ring).
  replace ((1 - 2 * alpha) * (1 - 2 * alpha)) with (1 - u) in S by (unfold u; ring). clearbody u. clear H.
  set (x := a - m) in *. set (y := b - m) in *. replace (3 * m - a - b - m) with (- x - y) in * by (unfold x, y; ring).
  set (d := target - m) in *. assert (x < d); [|unfold x, d in *; lra]. clearbody x y d.
  assert (W : x ^ 2 + y ^ 2 + (- x - y) ^ 2 >= 3 / 2 * x ^ 2) by (pose proof (pow2_ge_0 (x + 2 * y)); nra).
  set (v := x ^ 2 + y ^ 2 + (- x - y) ^ 2) in *. clearbody v. clear y.
  assert (D : 0 < d).
  { destruct (Rlt_le_dec 0 d) as [P|N]; [exact P | exfalso].
    assert (3 * d * Rabs (3 * d) <= 0) by (pose proof (Rabs_pos (3 * d)); nra).
    assert (u * (3 * d * Rabs (3 * d)) <= 0) by nra. assert (0 <= (1 - u) * v) by nra. nra. }
  rewrite Rabs_right in S by lra.
  assert (0 < v) by lra. assert (I : v < 3 / 2 * d ^ 2).
  { assert (u * (9 * d ^ 2) <= / 3 * (9 * d ^ 2)) by (apply Rmult_le_compat_r; nra).
    assert (2 / 3 * (3 * v) <= (1 - u) * (3 * v)) by (apply Rmult_le_compat_r; lra). nra. }
  nra.
Qed.

Lemma gate_turned (a b c target alpha : R) :
  gate_margin (K := on_R) a b c target alpha = gate_margin (K := on_R) b c a target alpha.
Proof.
  unfold gate_margin. rewrite !scatter_is, !lead_is.
  replace (mean b c a) with (mean a b c) by (unfold mean; lra).
  replace (variance b c a) with (variance a b c) by (unfold variance, mean; lra). reflexivity.
Qed.

(** Where the gate is met each of the three runs is below the target, at every level alpha with
    alpha (1 - alpha) <= 1/12, that is up to 1/2 - 1/sqrt 6 = 0.0917… *)
Theorem met_means_all_below (a b c target alpha : R) : 0 <= alpha * (1 - alpha) <= / 12 ->
  0 <= gate_margin (K := on_R) a b c target alpha -> a < target /\ b < target /\ c < target.
Proof.
  intros H G. repeat split.
  - apply (run_below a b c target alpha H G).
  - rewrite gate_turned in G. apply (run_below b c a target alpha H G).
  - rewrite <- gate_turned in G. apply (run_below c a b target alpha H G).
Qed.

Lemma gate_at_known (alpha : R) : 1 / 100 <= alpha <= 1 / 2 ->
  0 <= gate_margin (K := on_R) (145 / 100)%R (144 / 100)%R (146 / 100)%R (3 / 2)%R alpha.
Proof.
  intro H. apply gate_met. rewrite scatter_is, lead_is, significance_is. unfold variance, mean.
  split; [lra|]. rewrite Rabs_right by lra. nra.
Qed.

Lemma met_means_all_below_satisfiable : exists a b c target alpha : R,
  0 <= alpha * (1 - alpha) <= / 12 /\ 0 <= gate_margin (K := on_R) a b c target alpha.
Proof.
  exists (145 / 100), (144 / 100), (146 / 100), (3 / 2), (1 / 100). split; [lra | apply gate_at_known; lra].
Qed.

(** Every level that a gate may declare is one of these. *)
Theorem declared_levels_mean_all_below (alpha : R) : 0 <= alpha <= Q2R victory_largest_alpha ->
  0 <= alpha * (1 - alpha) <= / 12.
Proof. unfold victory_largest_alpha, Q2R. simpl. intro H. nra. Qed.

Lemma declared_levels_mean_all_below_satisfiable : exists alpha : R, 0 <= alpha <= Q2R victory_largest_alpha.
Proof. exists (1 / 100). unfold victory_largest_alpha, Q2R. simpl. lra. Qed.

(** And no more than these: at a looser level the gate is met by three runs of which one is at the target. *)
Theorem looser_levels_do_not (alpha : R) : / 12 < alpha * (1 - alpha) ->
  exists a b c target : R, 0 <= gate_margin (K := on_R) a b c target alpha /\ ~ a < target.
Proof.
  intro H. exists 0, (-3), (-3), 0. split; [|lra]. apply gate_met.
  rewrite scatter_is, lead_is, significance_is. unfold variance, mean. split; [lra|].
  rewrite Rabs_right by lra. nra.
Qed.

Lemma looser_levels_do_not_satisfiable : exists alpha : R, / 12 < alpha * (1 - alpha).
Proof. exists (1 / 10). lra. Qed.

(** Lowering all three runs by the same amount never loses the gate. *)
Theorem lowering_all_keeps_the_gate (a b c target alpha less : R) : 0 <= alpha <= 1 -> 0 <= less ->
  0 <= gate_margin (K := on_R) a b c target alpha ->
  0 <= gate_margin (K := on_R) (a - less)%R (b - less)%R (c - less)%R target alpha.
Proof.
  intros H B G. apply gate_met in G. apply gate_met. rewrite !scatter_is, !lead_is, !significance_is in *.
  replace (variance (a - less) (b - less) (c - less)) with (variance a b c) by (unfold variance, mean; field).
  replace (3 * (target - mean (a - less) (b - less) (c - less))) with (3 * (target - mean a b c) + 3 * less)
    by (unfold mean; field).
  destruct G as [V S]. split; [exact V|]. set (l := 3 * (target - mean a b c)) in *. clearbody l.
  assert (M : l * Rabs l <= (l + 3 * less) * Rabs (l + 3 * less)).
  { unfold Rabs. destruct (Rcase_abs l), (Rcase_abs (l + 3 * less)); nra. }
  assert (0 <= 4 * alpha * (1 - alpha)) by nra.
  apply (Rmult_le_compat_l (4 * alpha * (1 - alpha))) in M; [|assumption]. lra.
Qed.

Lemma lowering_all_keeps_the_gate_satisfiable : exists a b c target alpha less : R,
  0 <= alpha <= 1 /\ 0 <= less /\ 0 <= gate_margin (K := on_R) a b c target alpha.
Proof.
  exists (145 / 100), (144 / 100), (146 / 100), (3 / 2), (1 / 100), 1. repeat split; try lra. apply gate_at_known; lra.
Qed.

(** The seed's reading is false: three different runs below the declared target that do not meet the gate. *)
Theorem all_below_is_not_enough : exists a b c : R,
  a < b /\ b < c /\ c < Q2R victory_target /\
  ~ 0 <= gate_margin (K := on_R) a b c (Q2R victory_target) (Q2R victory_alpha).
Proof.
  exists (147 / 100), (148 / 100), (149 / 100). unfold victory_target, victory_alpha, Q2R. simpl.
  repeat split; try lra. intro G. apply gate_met in G. destruct G as [_ S]. revert S.
  rewrite scatter_is, lead_is, significance_is. unfold variance, mean. rewrite Rabs_right by lra. lra.
Qed.
