(** INV-4 nca-entropy-band: on K points 0 <= H <= ln K, for every K and every distribution; both ends are reached, the
    upper one by the uniform distribution alone. So nine states never have phi^2 nats of entropy, still less 2.8. *)

Require Import Reals Lra Lia QArith Qreals.
From Karat Require Import Carrier Sums Golden Clamp Constants.

Section Formulas.
Context {K : Carrier}.
Local Open Scope carrier_scope.

(** xlogx: p ln p, with 0 at 0. *)
Definition entropy_nats (xlogx : K -> K) (states : nat) (p : nat -> K) : K := opp (sum states (fun i => xlogx (p i))).

Definition frequencies (states : nat) (counts : nat -> K) (i : nat) : K := counts i / sum states counts.

Definition margin (h low high : K) : K := minimum (high - h) (h - low).
End Formulas.

Local Open Scope R_scope.

(** Coq's ln 0 is 0; the product is 0 there whatever it were. *)
Definition xlogx (p : R) : R := p * ln p.
Local Notation entropy := (entropy_nats (K := on_R) xlogx).

Lemma ln_below (x : R) : 0 < x -> ln x <= x - 1.
Proof. intro H. pose proof (exp_ineq1_le (ln x)) as E. rewrite exp_ln in E by exact H. lra. Qed.

Lemma ln_strictly_below (x : R) : 0 < x -> x <> 1 -> ln x < x - 1.
Proof.
  intros H N. assert (D : ln x <> 0) by (intro E; apply N, ln_inv; rewrite ?ln_1; lra).
  pose proof (exp_ineq1 (ln x) D) as E. rewrite exp_ln in E by exact H. lra.
Qed.

Lemma entropy_total (n : nat) (p : nat -> R) : entropy n p = - total n (fun i => xlogx (p i)).
Proof. unfold entropy_nats, opp, zero. simpl. lra. Qed.

(** What a point contributes to ln K - H, beside terms that add up to 0. *)
Definition gap (k p : R) : R := p * ln k + (/ k - p) + xlogx p.

Lemma gap_nonneg (k p : R) : 0 < k -> 0 <= p -> 0 <= gap k p.
Proof.
  intros Hk Hp. unfold gap, xlogx. pose proof (Rinv_0_lt_compat k Hk).
  destruct (Req_dec p 0) as [->|N]; [lra|].
  assert (M : 0 < k * p) by (apply Rmult_lt_0_compat; lra).
  pose proof (ln_below (/ (k * p)) (Rinv_0_lt_compat _ M)) as E.
  rewrite ln_Rinv, ln_mult in E by lra.
  apply (Rmult_le_compat_l p) in E; [|lra].
  replace (p * (/ (k * p) - 1)) with (/ k - p) in E by (field; lra). lra.
Qed.

Lemma gap_zero (k p : R) : 0 < k -> 0 <= p -> gap k p = 0 -> p = / k.
Proof.
  intros Hk Hp G. pose proof (Rinv_0_lt_compat k Hk).
  destruct (Req_dec p 0) as [->|N]; [unfold gap, xlogx in G; lra|].
  destruct (Req_dec p (/ k)) as [E|D]; [exact E|exfalso].
  assert (M : 0 < k * p) by (apply Rmult_lt_0_compat; lra).
  assert (N1 : / (k * p) <> 1).
  { intro E. apply D. apply (f_equal (fun x => x * p)) in E.
    replace (/ (k * p) * p) with (/ k) in E by (field; lra). lra. }
  pose proof (ln_strictly_below (/ (k * p)) (Rinv_0_lt_compat _ M) N1) as E.
  rewrite ln_Rinv, ln_mult in E by lra.
  apply (Rmult_lt_compat_l p) in E; [|lra].
  replace (p * (/ (k * p) - 1)) with (/ k - p) in E by (field; lra).
  unfold gap, xlogx in G. lra.
Qed.

Lemma states_positive (n : nat) (p : nat -> R) : total n p = 1 -> 0 < INR n.
Proof. destruct n; intro H; [rewrite total_0 in H; lra | apply lt_0_INR; lia]. Qed.

Lemma gaps (n : nat) (p : nat -> R) :
  total n p = 1 -> total n (fun i => gap (INR n) (p i)) = ln (INR n) - entropy n p.
Proof.
  intro S. pose proof (states_positive n p S). rewrite entropy_total. unfold gap.
  rewrite !total_plus, total_minus, total_const.
  rewrite (total_ext n (fun i => p i * ln (INR n)) (fun i => ln (INR n) * p i)) by (intros; lra).
  rewrite total_scal, S. field_simplify; lra.
Qed.

(** Terms that are >= 0 and add up to 0 are 0. *)
Lemma all_zero (n : nat) (f : nat -> R) :
  (forall i, (i < n)%nat -> 0 <= f i) -> total n f = 0 -> forall i, (i < n)%nat -> f i = 0.
Proof.
  induction n as [|n IH]; intros P S i H; [lia|]. rewrite total_S in S.
  assert (0 <= total n f) by (apply total_nonneg; intros; apply P; lia).
  assert (0 <= f n) by (apply P; lia).
  destruct (Nat.eq_dec i n) as [->|N]; [lra|]. apply IH; [intros; apply P; lia | lra | lia].
Qed.

Lemma term_le_total (n : nat) (f : nat -> R) (i : nat) :
  (forall j, (j < n)%nat -> 0 <= f j) -> (i < n)%nat -> f i <= total n f.
Proof.
  induction n as [|n IH]; intros P H; [lia|]. rewrite total_S.
  destruct (Nat.eq_dec i n) as [->|N].
  - assert (0 <= total n f) by (apply total_nonneg; intros; apply P; lia). lra.
  - assert (f i <= total n f) by (apply IH; [intros; apply P; lia | lia]). assert (0 <= f n) by (apply P; lia). lra.
Qed.

Lemma xlogx_nonpositive (p : R) : 0 <= p <= 1 -> xlogx p <= 0.
Proof.
  intros [L U]. unfold xlogx. destruct (Req_dec p 0) as [->|N]; [lra|].
  pose proof (ln_below p ltac:(lra)). nra.
Qed.

(** 0 <= H <= ln K for every distribution on K points, for every K. *)
Theorem entropy_range (states : nat) (p : nat -> R) :
  (forall i, (i < states)%nat -> 0 <= p i) -> total states p = 1 ->
  0 <= entropy states p <= ln (INR states).
Proof.
  intros P S. pose proof (states_positive states p S) as Hn. split.
  - rewrite entropy_total.
    assert (total states (fun i => xlogx (p i)) <= total states (fun _ => 0)) as E.
    { apply total_le. intros i Hi. apply xlogx_nonpositive. split; [apply P, Hi|].
      rewrite <- S. apply term_le_total; assumption. }
    rewrite total_zero in E. lra.
  - assert (0 <= total states (fun i => gap (INR states) (p i))) as E.
    { apply total_nonneg. intros i Hi. apply gap_nonneg; [exact Hn | apply P, Hi]. }
    rewrite gaps in E by exact S. lra.
Qed.

Lemma entropy_range_satisfiable : exists (states : nat) (p : nat -> R),
  (forall i, (i < states)%nat -> 0 <= p i) /\ total states p = 1.
Proof. exists 2%nat, (fun _ => / 2). split; [intros; lra | rewrite total_const; simpl; lra]. Qed.

(** The upper end is reached: H = ln K at the uniform distribution. *)
Theorem entropy_of_uniform (states : nat) :
  (0 < states)%nat -> entropy states (fun _ => / INR states) = ln (INR states).
Proof.
  intro H. apply lt_0_INR in H. rewrite entropy_total, total_const. unfold xlogx. rewrite ln_Rinv by exact H.
  change (- (INR states * (/ INR states * - ln (INR states))) = ln (INR states)). field. lra.
Qed.

Lemma entropy_of_uniform_satisfiable : exists states : nat, (0 < states)%nat.
Proof. exists 9%nat. lia. Qed.

(** And nowhere else: H = ln K makes every point's probability 1/K. *)
Theorem entropy_full_only_at_uniform (states : nat) (p : nat -> R) :
  (forall i, (i < states)%nat -> 0 <= p i) -> total states p = 1 -> entropy states p = ln (INR states) ->
  forall i, (i < states)%nat -> p i = / INR states.
Proof.
  intros P S E i Hi. pose proof (states_positive states p S) as Hn.
  apply gap_zero; [exact Hn | apply P, Hi|].
  refine (all_zero states (fun j => gap (INR states) (p j)) _ _ i Hi).
  - intros j Hj. apply gap_nonneg; [exact Hn | apply P, Hj].
  - rewrite gaps by exact S. lra.
Qed.

Lemma entropy_full_only_at_uniform_satisfiable : exists (states : nat) (p : nat -> R),
  (forall i, (i < states)%nat -> 0 <= p i) /\ total states p = 1 /\ entropy states p = ln (INR states) /\
  exists i : nat, (i < states)%nat.
Proof.
  exists 2%nat, (fun _ => / INR 2). repeat split.
  - intros. simpl. lra.
  - rewrite total_const. simpl. lra.
  - apply entropy_of_uniform. lia.
  - exists 1%nat. lia.
Qed.

(** The lower end is reached at point masses alone: H = 0 makes every probability 0 or 1. *)
Theorem entropy_zero_only_at_points (states : nat) (p : nat -> R) :
  (forall i, (i < states)%nat -> 0 <= p i) -> total states p = 1 -> entropy states p = 0 ->
  forall i, (i < states)%nat -> p i = 0 \/ p i = 1.
Proof.
  intros P S E i Hi. rewrite entropy_total in E.
  assert (B : forall j, (j < states)%nat -> 0 <= p j <= 1)
    by (intros j Hj; split; [apply P, Hj | rewrite <- S; apply term_le_total; assumption]).
  assert (- xlogx (p i) = 0) as Z.
  { refine (all_zero states (fun j => - xlogx (p j)) _ _ i Hi).
    - intros j Hj. pose proof (xlogx_nonpositive (p j) (B j Hj)). lra.
    - rewrite (total_ext states _ (fun j => -1 * xlogx (p j))) by (intros; lra). rewrite total_scal. lra. }
  destruct (Req_dec (p i) 0) as [E0|N]; [left; exact E0 | right].
  destruct (Req_dec (p i) 1) as [E1|N1]; [exact E1 | exfalso].
  specialize (B i Hi). pose proof (ln_strictly_below (p i) ltac:(lra) N1). unfold xlogx in Z. nra.
Qed.

Lemma entropy_zero_only_at_points_satisfiable : exists (states : nat) (p : nat -> R),
  (forall i, (i < states)%nat -> 0 <= p i) /\ total states p = 1 /\ entropy states p = 0 /\
  exists i : nat, (i < states)%nat.
Proof.
  exists 2%nat, (fun i => if Nat.eqb i 1 then 1 else 0). repeat split.
  - intros i Hi. destruct (Nat.eqb i 1); lra.
  - apply total_pick. lia.
  - rewrite entropy_total. unfold xlogx, total. simpl. rewrite ln_1. lra.
  - exists 1%nat. lia.
Qed.

(** Counts over their sum are a distribution. *)
Theorem frequencies_are_a_distribution (states : nat) (counts : nat -> R) :
  (forall i, (i < states)%nat -> 0 <= counts i) -> 0 < total states counts ->
  (forall i, (i < states)%nat -> 0 <= frequencies (K := on_R) states counts i) /\
  total states (frequencies (K := on_R) states counts) = 1.
Proof.
  intros P S. unfold frequencies. simpl. split.
  - intros i Hi. apply Rle_mult_inv_pos; [apply P, Hi | exact S].
  - rewrite (total_ext states _ (fun i => / total states counts * counts i)) by (intros; unfold Rdiv; apply Rmult_comm).
    rewrite total_scal. field. lra.
Qed.

Lemma frequencies_are_a_distribution_satisfiable : exists (states : nat) (counts : nat -> R),
  (forall i, (i < states)%nat -> 0 <= counts i) /\ 0 < total states counts.
Proof. exists 9%nat, (fun _ => 9). split; [intros; lra | rewrite total_const; simpl; lra]. Qed.

(** The clamp that ends the computed entropy changes nothing over the reals: of every histogram it is the entropy. *)
Theorem entropy_of_counts_is_entropy (states : nat) (counts : nat -> R) :
  (forall i, (i < states)%nat -> 0 <= counts i) -> 0 < total states counts ->
  clamp (K := on_R) (entropy states (frequencies (K := on_R) states counts)) 0 (ln (INR states)) =
  entropy states (frequencies (K := on_R) states counts).
Proof.
  intros P S. apply clamp_inside.
  apply entropy_range; apply frequencies_are_a_distribution; assumption.
Qed.

Lemma entropy_of_counts_is_entropy_satisfiable : exists (states : nat) (counts : nat -> R),
  (forall i, (i < states)%nat -> 0 <= counts i) /\ 0 < total states counts.
Proof. exact frequencies_are_a_distribution_satisfiable. Qed.

(** The guard's margin is not negative exactly in the band. *)
Theorem margin_is_the_band (h low high : R) : 0 <= margin (K := on_R) h low high <-> low <= h <= high.
Proof. unfold margin, minimum. compare; lra. Qed.

Lemma ln9 : ln 9 = 2 * ln 3.
Proof. replace 9 with (3 ^ 2) by lra. rewrite ln_pow by lra. simpl. lra. Qed.

(** e <= 3, so that ln 9 >= 2. *)
Lemma ln9_at_least_2 : 2 <= ln 9.
Proof.
  rewrite ln9. assert (1 <= ln 3); [|lra]. rewrite <- (ln_exp 1).
  destruct exp_le_3 as [L|E]; [left; apply ln_increasing; [apply exp_pos | exact L] | rewrite E; lra].
Qed.

(** 9 < (1 + phi^2 / 8)^8 <= exp (phi^2). *)
Lemma ln9_below_phi_squared : ln 9 < phi ^ 2.
Proof.
  rewrite phi_squared. destruct phi_enclosed as [A _]. apply Rlt_trans with (INR 8 * 0.3272); [|simpl; lra].
  rewrite <- (ln_exp (INR 8 * 0.3272)). apply ln_increasing; [lra|].
  assert (P : exp (INR 8 * 0.3272) = exp 0.3272 ^ 8)
    by (rewrite <- Rpower_pow by apply exp_pos; unfold Rpower; rewrite ln_exp; reflexivity).
  rewrite P. apply Rlt_le_trans with (1.3272 ^ 8); [simpl; lra|].
  apply pow_incr. pose proof (exp_ineq1_le 0.3272). lra.
Qed.

(** ln 9 < phi^2 < 2.8: in nats neither the certified nor the seed's upper end can bind. *)
Theorem upper_ends_never_bind : ln (IZR entropy_states) < phi ^ 2 /\ phi ^ 2 < Q2R entropy_high.
Proof.
  split; [exact ln9_below_phi_squared|]. rewrite phi_squared. destruct phi_enclosed.
  unfold entropy_high, Q2R. simpl. lra.
Qed.

(** 2.8 < log2 9: in bits the seed's upper end does bind. *)
Theorem upper_end_binds_in_bits : Q2R entropy_high < ln (IZR entropy_states) / ln 2.
Proof.
  assert (0 < ln 2) by (rewrite <- ln_1; apply ln_increasing; lra).
  assert (E : ln (2 ^ 14) < ln (9 ^ 5)) by (apply ln_increasing; [apply pow_lt; lra | simpl; lra]).
  rewrite !ln_pow in E by lra. simpl INR in E. unfold entropy_high, entropy_states, Q2R. simpl.
  apply Rmult_lt_reg_r with (ln 2); [assumption|]. unfold Rdiv. rewrite (Rmult_assoc (ln 9)), Rinv_l by lra. lra.
Qed.

(** Every distribution on nine states has less than phi^2 nats of entropy. *)
Theorem nine_states_below_phi_squared (p : nat -> R) :
  (forall i, (i < Z.to_nat entropy_states)%nat -> 0 <= p i) -> total (Z.to_nat entropy_states) p = 1 ->
  entropy (Z.to_nat entropy_states) p < phi ^ 2.
Proof.
  intros P S. apply Rle_lt_trans with (ln (IZR entropy_states)); [|apply upper_ends_never_bind].
  destruct (entropy_range _ p P S) as [_ E]. rewrite INR_IZR_INZ, Z2Nat.id in E by (unfold entropy_states; lia). exact E.
Qed.

Lemma nine_states_below_phi_squared_satisfiable : exists p : nat -> R,
  (forall i, (i < Z.to_nat entropy_states)%nat -> 0 <= p i) /\ total (Z.to_nat entropy_states) p = 1.
Proof.
  exists (fun i => if Nat.eqb i 4 then 1 else 0). split; [intros i _; destruct (Nat.eqb i 4); lra|].
  apply total_pick. unfold entropy_states. simpl. lia.
Qed.

(** The certified band [phi, min(phi^2, ln 9)] lies inside the default one and is not empty. *)
Theorem certified_inside_default :
  Q2R entropy_low < phi /\ phi < Rmin (phi ^ 2) (ln (IZR entropy_states)) /\
  Rmin (phi ^ 2) (ln (IZR entropy_states)) = Rmin (Q2R entropy_high) (ln (IZR entropy_states)).
Proof.
  destruct upper_ends_never_bind as [A B]. destruct phi_enclosed. pose proof ln9_at_least_2 as L.
  change 9 with (IZR entropy_states) in L. rewrite !Rmin_right by lra. repeat split; [|lra].
  unfold entropy_low, Q2R. simpl. lra.
Qed.

(** The seed's integer width: phi^2 - phi = 1. *)
Theorem certified_width : phi ^ 2 - phi = 1.
Proof. rewrite phi_squared. lra. Qed.
